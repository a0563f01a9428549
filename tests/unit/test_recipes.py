"""The groups that recipes are composed from, their READMEs, and `recipes list`, `show`, `new`; verl is not imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import compose, find_recipe, known_recipes, recipe_folder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="needs verl beside us")

FOLDERS = sorted(path for path in recipe_folder().iterdir() if path.is_dir() and any(path.glob("*.yaml")))
RENAMING = {"actor", "ref", "critic"}  # verl's parts under another name; described in the README above them


def run(*words: str, width: int = 160) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("folder", [path for path in FOLDERS if path.name not in RENAMING], ids=lambda path: path.name)
def test_the_readme_of_a_folder_names_every_file_in_it(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert [path.stem for path in folder.glob("*.yaml") if path.stem not in text] == []


@pytest.mark.parametrize("path", sorted(recipe_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_says_what_it_is_before_it_says_anything_else(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines()[:4] if line.startswith("# ")]
    assert [line for line in comments if not line.startswith("# @package")] or "unsupported" in path.parts


@pytest.mark.parametrize("name", known_recipes())
def test_a_recipe_says_what_it_reproduces_and_what_was_run(name: str) -> None:
    about = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text())["recipe"]
    assert set(about) == {"title", "reproduces", "ran"} and all(about.values())


def test_the_choices_of_one_command_line_all_take_effect() -> None:
    overrides = [
        "model=qwen2.5_3b",
        "engine=megatron",
        "rollout=sglang",
        "hardware=gpu8",
        "method=ppo",
        "variant=coarse",
    ]
    composed = compose(find_recipe("toolrl/grpo"), overrides)
    expected = {
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-3B-Instruct",
        "actor_rollout_ref.actor.strategy": "megatron",
        "actor_rollout_ref.ref.strategy": "megatron",
        "critic.strategy": "megatron",
        "critic.model.path": "Qwen/Qwen2.5-3B-Instruct",
        # 16 heads and 2 key-value heads: as many as the hardware asks for.
        "actor_rollout_ref.actor.megatron.tensor_model_parallel_size": 2,
        "actor_rollout_ref.rollout.name": "sglang",
        "actor_rollout_ref.rollout.n": 1,
        "algorithm.adv_estimator": "gae",
        "trainer.n_gpus_per_node": 8,
        "reward.reward_kwargs.coarse": True,
    }
    assert {key: composed.get(key) for key in expected} == expected
    assert composed.get("actor_rollout_ref.actor.fsdp_config") is None


@pytest.mark.parametrize(
    ("hardware", "offload", "devices"),
    [("gpu1", True, 1), ("gpu2", False, 2), ("gpu8", False, 8), ("gpu2x8", False, 16)],
)
@pytest.mark.parametrize(("engine", "node"), [("fsdp", "fsdp_config"), ("megatron", "megatron")])
def test_what_the_hardware_wants_reaches_the_keys_of_both_engines(
    hardware: str, offload: bool, devices: int, engine: str, node: str
) -> None:
    composed = compose(find_recipe("toolrl/grpo"), [f"hardware={hardware}", f"engine={engine}"])
    for name in ("param_offload", "optimizer_offload"):
        assert composed.get(f"actor_rollout_ref.actor.{node}.{name}") is offload
    assert composed.get("trainer.nnodes") * composed.get("trainer.n_gpus_per_node") == devices


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_a_mode_is_one_word(mode: str) -> None:
    composed = compose(find_recipe("tool_agent/grpo"), [f"mode={mode}"])
    assert composed.get("trainer.v1.trainer_mode") == f"toolrl_{mode}"
    correction = composed.get("algorithm.rollout_correction.rollout_is")
    assert correction == (None if mode == "sync" else "token")


def test_the_recipe_with_step_level_credit_trains_a_critic() -> None:
    ppo, grpo = (compose(find_recipe(f"tool_agent/{name}"), []) for name in ("ppo", "grpo"))
    assert [ppo.get("algorithm.adv_estimator"), grpo.get("algorithm.adv_estimator")] == ["gae", "grpo"]
    assert ppo.get("critic.model.path") == ppo.get("actor_rollout_ref.model.path")
    for composed in (ppo, grpo):
        assert composed.get("reward.reward_kwargs.reward") == "steptool"


def test_a_model_with_odd_heads_is_not_split() -> None:
    composed = compose(find_recipe("toolrl/grpo"), ["model=smollm2", "engine=megatron"])
    # 9 heads and 3 key-value heads: no share of 2.
    assert composed.get("actor_rollout_ref.actor.megatron.tensor_model_parallel_size") == 1


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["hardware=cpu", "engine=megatron"], "engine=megatron needs CUDA"),
        (["hardware=gpu1", "mode=separate_async"], "needs two GPUs"),
        (["model_engine=megatron"], "chosen by engine=megatron"),
        (["model_engine=veomni"], "not model_engine=veomni"),
    ],
)
def test_an_unsupported_combination_says_why_where_the_trainer_first_looks(overrides: list[str], reason: str) -> None:
    composed = compose(find_recipe("toolrl/grpo"), overrides)
    with pytest.raises(Exception, match=reason):
        _ = composed.config.ray_kwargs.ray_init.num_gpus


def test_a_recipe_of_ones_own_overrides_choices_and_values(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "# @package _global_\n"
        "defaults: [/toolrl/grpo, _self_, {override /model: llama3.2_3b}, {override /engine: megatron}]\n"
        "data: {train_batch_size: 64}\n"
    )
    composed = compose(find_recipe(str(mine)), [])
    assert composed.get("actor_rollout_ref.model.path") == "meta-llama/Llama-3.2-3B-Instruct"
    assert composed.get("actor_rollout_ref.actor.strategy") == "megatron"
    assert composed.get("data.train_batch_size") == 64


def test_list_names_recipes_and_choices() -> None:
    output = run("recipes", "list")
    for word in (*known_recipes(), "qwen2.5_7b", "gpu2x8", "megatron", "sglang", "dynamic_scale", "not trained here"):
        assert word in output


def test_show_prints_value_default_and_reason() -> None:
    lines = run("recipes", "show", "toolrl/grpo", "trainer.total_epochs=3").splitlines()
    row = next(line for line in lines if "rollout.n " in line)
    assert row.split()[:3] == ["rollout.n", "4", "1"] and "Rollouts a prompt" in row
    assert next(line for line in lines if "trainer.total_epochs " in line).split()[:3] == [
        "trainer.total_epochs",
        "3",
        "30",
    ]
    # Without a critic its settings are left out, as are values that only follow from others.
    assert not [line for line in lines if "critic." in line or "prometheus" in line]


def test_show_compares_with_verls_own_tree_of_the_same_engine() -> None:
    lines = run("recipes", "show", "toolrl/ppo", "engine=megatron", "critic.optim.lr=2e-5").splitlines()
    # A critic is trained, so what is changed of it is shown, and nothing that only FSDP has.
    assert [line for line in lines if "critic.optim.lr " in line]
    assert not [line for line in lines if "fsdp" in line and "engine=" not in line]


def test_show_fits_on_a_screen() -> None:
    assert len(run("recipes", "show", "toolrl/grpo").splitlines()) <= 60


@pytest.mark.parametrize("like", ["toolrl/grpo", "toolrl/ppo", "toolrl/tool_n1", "toolrl/quickstart"])
def test_a_new_recipe_composes(like: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert f"recipes check {path}" in run("recipes", "new", str(path), "--like", like)
    assert compose(find_recipe(str(path)), []).get("trainer.experiment_name") == "mine"


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("mine.yml", "toolrl/grpo", "ending in .yaml only"),
        ("ppo_trainer.yaml", "toolrl/grpo", "take another"),
        ("there.yaml", "toolrl/grpo", "exists already"),
        ("mine.yaml", "toolrl/grop", "did you mean 'toolrl/grpo'"),
        ("mine.yaml", "toolrl/quickstart_sft", "for the RL trainer"),
        ("mine.yaml", "ppo_trainer", "for the RL trainer"),
    ],
)
def test_a_new_recipe_that_cannot_be_is_refused(name: str, like: str, message: str, tmp_path: Path) -> None:
    from verl_toolrl.recipe_check.new import write_recipe

    (tmp_path / "there.yaml").touch()
    with pytest.raises(ConfigError, match=message):
        write_recipe(tmp_path / name, like)


def test_list_and_show_do_not_import_verl() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from verl_toolrl.cli import app\n"
        "for words in (['list'], ['show', 'toolrl/grpo']):\n"
        "    assert CliRunner().invoke(app, ['recipes', *words]).exit_code == 0\n"
        "print([name for name in ('verl', 'ray', 'torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert (done.stdout, done.stderr) == ("[]\n", "")
