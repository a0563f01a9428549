"""`recipes check` says nothing of what verl ships, nor of our own recipes in any engine, rollout and choice.

Composes with verl's real configuration and builds verl's real dataclasses; trains nothing and needs no engine.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl", allow_module_level=True)

from verl_toolrl.launch.recipes import Recipe, compose, find_recipe, known_recipes, recipe_folder, verl_configs
from verl_toolrl.recipe_check.check import check_recipe, combinations
from verl_toolrl.recipe_check.finding import Report

pytestmark = pytest.mark.usefixtures("read_verls_files_once")


def errors(report: Report) -> list[tuple[str, str]]:
    return [(finding.key, finding.message) for finding in report.errors]


# verl's own configurations: the two roots with every engine that it has, and the older entry points.
SHIPPED = [
    *[("ppo_trainer", [f"model_engine={engine}"]) for engine in ("dp", "megatron", "veomni", "torchtitan")],
    ("ppo_megatron_trainer", []),
    *[
        ("sft_trainer_engine", [f"engine={engine}", f"optim={engine}"])
        for engine in ("fsdp", "megatron", "veomni", "torchtitan", "automodel")
    ],
    ("_generated_ppo_trainer", []),
    ("_generated_ppo_megatron_trainer", []),
    ("_generated_ppo_veomni_trainer", []),
    ("_generated_ppo_torchtitan_trainer", []),
]


@pytest.mark.parametrize(("name", "overrides"), SHIPPED, ids=lambda value: str(value))
def test_nothing_is_wrong_with_what_verl_ships(name: str, overrides: list[str]) -> None:
    assert errors(check_recipe(Recipe(name), overrides)) == []


def verl_experiments() -> list[Path]:
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    return sorted(Path(spec.submodule_search_locations[0]).glob("experimental/*/config/*.yaml"))


@pytest.mark.parametrize("path", verl_experiments(), ids=lambda path: path.stem)
def test_nothing_is_wrong_with_verls_experiments(path: Path, tmp_path: Path) -> None:
    """Their search path is relative to a checkout of verl, which ours replaces; their own nodes are read by them."""
    content = yaml.safe_load(path.read_text())
    del content["hydra"]
    (tmp_path / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
    report = check_recipe(find_recipe(str(tmp_path / path.name)), [])
    own = set(content) - {"defaults", *yaml.safe_load((verl_configs() / "ppo_trainer.yaml").read_text())}
    assert [error for error in errors(report) if error[0].split(".")[0] not in own] == []


OURS = [
    pytest.param(name, overrides, id=" ".join([name, *overrides]))
    for name in known_recipes()
    for overrides in combinations(find_recipe(name))
]


@pytest.mark.parametrize(("name", "overrides"), OURS)
def test_our_recipes_are_right_in_every_engine_and_rollout(name: str, overrides: list[str]) -> None:
    findings = check_recipe(find_recipe(name), overrides).findings
    # A tool set is the user's to give.
    left = [finding.key for finding in findings if not finding.is_error]
    assert left == ([_TOOLBOX] if name in ("tool_agent/grpo", "tool_agent/ppo") else [])
    assert [finding for finding in findings if finding.is_error] == []


_TOOLBOX = "actor_rollout_ref.rollout.custom.toolrl.toolbox"


ENGINES = ("fsdp", "megatron")


def every_choice() -> list[list[str]]:
    """A choice from all groups at once, until each was chosen with both engines; a reward knows nothing of engines."""
    groups = {
        group: sorted(path.stem for path in (recipe_folder() / group).glob("*.yaml"))
        for group in ("hardware", "method", "mode", "model", "overlay", "variant")
    }
    refused = {path.stem for path in (recipe_folder() / "unsupported").rglob("*.yaml")}
    found = []
    for number in range(2 * max(len(options) for group, options in groups.items() if group != "variant")):
        turns = {group: number if group == "variant" else number // 2 for group in groups}
        chosen = {group: options[turns[group] % len(options)] for group, options in groups.items()}
        engine = ENGINES[number % 2]
        if {f"{chosen['hardware']}_{engine}", f"{chosen['mode']}_{chosen['hardware']}"} & refused:
            chosen["hardware"] = "gpu8"
        found.append([f"engine={engine}", *(f"{group}={option}" for group, option in chosen.items())])
    return found


@pytest.mark.parametrize("choices", every_choice(), ids=" ".join)
def test_every_choice_is_right_in_both_engines(choices: list[str]) -> None:
    assert check_recipe(find_recipe("toolrl/grpo"), choices).findings == []


def test_no_choice_is_left_out() -> None:
    chosen = {choice for choices in every_choice() for choice in choices}
    files = [path for path in recipe_folder().glob("*/*.yaml") if (path.parent.name, path.stem) != ("start", "sft")]
    groups = {"hardware", "method", "mode", "model", "overlay", "variant"}
    assert {f"{path.parent.name}={path.stem}" for path in files if path.parent.name in groups} <= chosen


def test_a_recipe_for_the_cpu_is_checked_with_every_rollout() -> None:
    wanted = [["engine=fsdp", "rollout=sglang"], ["engine=fsdp", "rollout=vllm"]]
    assert wanted == combinations(find_recipe("toolrl/quickstart"))


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
@pytest.mark.parametrize("rollout", ["vllm", "sglang"])
@pytest.mark.parametrize("engine", ENGINES)
def test_asynchronous_modes_are_right_in_both_engines_and_rollouts(engine: str, rollout: str, mode: str) -> None:
    choices = [f"engine={engine}", f"rollout={rollout}", f"mode={mode}"]
    assert check_recipe(find_recipe("toolrl/grpo"), choices).findings == []


@pytest.mark.parametrize("hardware", ["gpu2", "gpu8", "gpu2x8"])
def test_the_devices_of_separate_async_are_those_of_the_hardware(hardware: str) -> None:
    choices = [f"hardware={hardware}", "mode=separate_async"]
    composed = compose(find_recipe("toolrl/grpo"), choices)
    devices = [
        composed.get(f"{node}.nnodes") * composed.get(f"{node}.n_gpus_per_node")
        for node in ("trainer", "actor_rollout_ref.rollout")
    ]
    half = {"gpu2": 1, "gpu8": 4, "gpu2x8": 8}[hardware]
    assert devices == [half, half]


@pytest.mark.parametrize("name", ["toolrl/tool_n1", "tool_agent/grpo", "tool_agent/ppo"])
def test_batches_of_every_recipe_fit_separate_async(name: str) -> None:
    """toolrl/grpo, ppo and gdpo share theirs."""
    assert errors(check_recipe(find_recipe(name), ["mode=separate_async"])) == []
