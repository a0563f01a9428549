"""The groups that recipes are composed from, their READMEs, and `recipes list`, `show`, `new`; verl is not imported."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import compose, find_recipe, known_recipes, recipe_folder
from verl_toolrl.recipe_check.names import check_reward
from verl_toolrl.rewards import configured_reward

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
    ("hardware", "offload", "offload_critic", "devices"),
    [("gpu1", True, True, 1), ("gpu2", False, True, 2), ("gpu8", False, False, 8), ("gpu2x8", False, False, 16)],
)
@pytest.mark.parametrize(
    ("engine", "actor", "critic"), [("fsdp", "fsdp_config", "fsdp"), ("megatron", "megatron", "megatron")]
)
def test_what_the_hardware_wants_reaches_the_keys_of_both_engines(
    hardware: str, offload: bool, offload_critic: bool, devices: int, engine: str, actor: str, critic: str
) -> None:
    composed = compose(find_recipe("toolrl/ppo"), [f"hardware={hardware}", f"engine={engine}"])
    for name in ("param_offload", "optimizer_offload"):
        assert composed.get(f"actor_rollout_ref.actor.{actor}.{name}") is offload
        assert composed.get(f"critic.{critic}.{name}") is offload_critic
    assert composed.get("trainer.nnodes") * composed.get("trainer.n_gpus_per_node") == devices


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_a_mode_is_one_word(mode: str) -> None:
    composed = compose(find_recipe("tool_agent/grpo"), [f"mode={mode}"])
    assert composed.get("trainer.v1.trainer_mode") == f"toolrl_{mode}"
    correction = composed.get("algorithm.rollout_correction.rollout_is")
    assert correction == (None if mode == "sync" else "token")


@pytest.mark.parametrize(("model", "dialect"), [("llama3.2_3b", "llama3_json"), ("qwen2.5_3b", "hermes")])
def test_calls_are_read_as_the_chosen_model_writes_them(model: str, dialect: str) -> None:
    composed = compose(find_recipe("tool_agent/grpo"), [f"model={model}"])
    assert dialect == composed.get("actor_rollout_ref.rollout.custom.toolrl.dialect")
    # A loop of one answer reads no such setting and has none.
    assert compose(find_recipe("toolrl/grpo"), [f"model={model}"]).get("actor_rollout_ref.rollout.custom") is None


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


def values_of(file: str) -> dict[str, Any]:
    """Keys with dots -> values of a file of the recipes, as it is written."""

    def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return found

    return flat(yaml.safe_load((recipe_folder() / file).read_text()))


TRUTH = (
    "<think> I should use the tool. </think>\n<tool_call>\n"
    '{"name": "get_weather", "parameters": {"city": "Paris", "unit": "celsius"}}\n</tool_call>'
)
LACKS_UNIT = TRUTH.replace(', "unit": "celsius"', "")
# What each variant sets, where that comes from (sections of arXiv:2504.13958; switches of qiancheng0/ToolRL@8cee13e,
# verl/utils/reward_score/rlla.py), and what it gives to a call that lacks one of two arguments (name 1, keys 1/2,
# values 1 of 2: 2.5 of 4), after five words of thought, at step 75 of 150: format, correctness, length.
VARIANTS: list[tuple[str, dict[str, Any], str, tuple[float, ...]]] = [
    ("released", {"mode": "released"}, "all switches 0 (issue 45)", (1, 0.75, 0)),
    ("length", {"mode": "released", "length": True}, "WITHLENGTH", (1, 0.75, 0.01)),  # 5 / 512, rounded
    # 5 / (384 + 256 * 75 / 105), rounded
    (
        "dynamic_length",
        {"mode": "released", "length": True, "dynamic_length": True},
        "and SCHEDULELENGTH",
        (1, 0.75, 0.01),
    ),
    ("equal_max", {"mode": "released", "equal_max": True}, "CORRECTMAX1", (1, 0.25, 0)),
    ("two_stage", {"mode": "released", "two_stage": True}, "MAX1STEP30MAX3", (0.5, 0.75, 0)),
    # Format up to 2 - 75 / 150; correctness in 2 + 75 / 150 both ways.
    ("dynamic_scale", {"mode": "released", "dynamic_scale": True}, "SCHEDULEREWARD", (1.5, 0.625, 0)),
    ("finegrained", {"mode": "released", "finegrained": True}, "REFINEDREWARD", (1, 0, 0)),  # keys 0: 2 of 4
    ("intermediate", {"mode": "released", "intermediate": True}, "INTERMEDIATEREWARD", (1, 0, 0)),  # name: 1 of 2
    ("coarse", {"mode": "released", "coarse": True}, "COARSEREWARD", (1, -3, 0)),
    ("paper", {"mode": "paper"}, "section 3.3", (1, 0.75, 0)),
    ("paper_length", {"mode": "paper", "length": "fixed"}, "section 5.1, 512", (1, 0.75, 5 / 512)),
    ("paper_dynamic_length", {"mode": "paper", "length": "dynamic"}, "section 5.1, 512 (1 + p)", (1, 0.75, 5 / 768)),
    ("paper_equal_max", {"mode": "paper", "scale": "equal_max"}, "section 5.2", (1, 0.25, 0)),
    ("paper_two_stage", {"mode": "paper", "scale": "two_stage"}, "section 5.2, s = 30", (0.5, 0.75, 0)),
    # Format in 2 - p, correctness in 2 + p both ways, p = 1/2.
    ("paper_dynamic_scale", {"mode": "paper", "scale": "dynamic"}, "section 5.2", (1.5, 0.625, 0)),
    ("paper_finegrained", {"mode": "paper", "granularity": "finegrained"}, "section 5.3", (1, 0, 0)),
    ("paper_intermediate", {"mode": "paper", "granularity": "intermediate"}, "section 5.3", (1, 0, 0)),
    ("paper_coarse", {"mode": "paper", "granularity": "coarse"}, "section 5.3", (1, -3, 0)),
    ("robust", {"mode": "robust"}, "ours", (1, 0.75, 0)),
    ("tool_n1", {"reward": "tool_n1", "dialect": "toolrl"}, "arXiv:2505.00024: all or nothing", (0,)),
]


@pytest.mark.parametrize(
    ("name", "kwargs", "parts"), [(case[0], case[1], case[3]) for case in VARIANTS], ids=[case[0] for case in VARIANTS]
)
def test_a_variant_sets_what_its_source_says(name: str, kwargs: dict[str, Any], parts: tuple[float, ...]) -> None:
    assert {f"reward.reward_kwargs.{key}": value for key, value in kwargs.items()} == values_of(f"variant/{name}.yaml")
    result = configured_reward(kwargs)(response=LACKS_UNIT, ground_truth=TRUTH, step=75, total_steps=150)
    assert parts == pytest.approx(tuple(result.components.values()), abs=1e-12)


def test_a_switch_without_effect_is_mentioned_and_no_mistake() -> None:
    kwargs: dict[str, Any] = {"mode": "released", "dynamic_length": True}
    mix = {"reward": "mix", "rewards": {"theirs": {"reward": "toolrl", **kwargs}, "tool_n1": {}}}
    for options, key in ((kwargs, "dynamic_length"), (mix, "rewards.theirs.dynamic_length")):
        (found,) = check_reward({"reward": {"reward_manager": {"name": "toolrl"}, "reward_kwargs": options}})
        assert (f"reward.reward_kwargs.{key}", False) == (found.key, found.is_error)
        assert "it needs length: true" in found.message


def test_every_variant_is_in_the_table() -> None:
    assert {case[0] for case in VARIANTS} == {path.stem for path in (recipe_folder() / "variant").glob("*.yaml")}


OVERLAYS: dict[str, dict[str, Any]] = {
    "as_paper": {
        # Section 3.4: "we omit the KL penalty"; advantages divided by the deviation of the group.
        "algorithm.use_kl_in_reward": False,
        "algorithm.norm_adv_by_std_in_grpo": True,
        "actor_rollout_ref.actor.use_kl_loss": False,
        # Not mentioned.
        "actor_rollout_ref.actor.entropy_coeff": 0.0,
        # Tables 8 and 9; of longer prompts nothing is said.
        "data.max_prompt_length": "${launch.lengths.prompt}",
        "data.max_response_length": "${launch.lengths.response}",
        "data.filter_overlong_prompts": True,
        # 15 epochs, all of their steps.
        "trainer.total_epochs": 15,
        "trainer.total_training_steps": None,
        "trainer.save_freq": 15,
        "trainer.test_freq": 5,
    },
    "as_released": {
        # use_kl_loss=False makes that code apply a penalty in the reward, k1 with a fixed 0.001, also for GRPO.
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_penalty": "kl",
        "algorithm.kl_ctrl.type": "fixed",
        "algorithm.kl_ctrl.kl_coef": 0.001,
        "actor_rollout_ref.actor.use_kl_loss": False,
        "algorithm.norm_adv_by_std_in_grpo": True,
        # Defaults of its configuration and its loss.
        "actor_rollout_ref.actor.entropy_coeff": 0.001,
        "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
        "data.max_prompt_length": "${launch.lengths.prompt}",
        "data.max_response_length": "${launch.lengths.response}",
        # Longer prompts are cut from the left, not filtered.
        "data.filter_overlong_prompts": False,
        "trainer.total_epochs": 15,
        # It leaves when the counter reaches 105, before the update.
        "trainer.total_training_steps": 104,
        "trainer.save_freq": 15,
        "trainer.test_freq": 5,
    },
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_sets_what_its_source_says(name: str) -> None:
    assert OVERLAYS[name] == values_of(f"overlay/{name}.yaml")


def test_the_papers_rows_make_as_many_steps_as_the_overlays_say() -> None:
    # 3,920 rows, the last batch of an epoch dropped: 7 steps an epoch.
    steps = 3920 // values_of("toolrl/_base.yaml")["data.train_batch_size"] * 15
    assert 105 == steps == OVERLAYS["as_released"]["trainer.total_training_steps"] + 1


@pytest.mark.parametrize(("method", "prompt", "response", "rollouts"), [("grpo", 2048, 1024, 4), ("ppo", 1024, 512, 1)])
def test_a_method_has_the_lengths_of_the_papers_tables(method: str, prompt: int, response: int, rollouts: int) -> None:
    """Tables 8 (GRPO) and 9 (PPO)."""
    values = values_of(f"method/{method}.yaml")
    assert (prompt, response) == (values["launch.lengths.prompt"], values["launch.lengths.response"])
    assert rollouts == values["actor_rollout_ref.rollout.n"]


COLUMNS = {
    "qwen2.5_1.5b": "Qwen2.5-1.5B",
    "qwen2.5_3b": "Qwen2.5-3B",
    "qwen2.5_7b": "Qwen2.5-7B",
    "llama3.2_3b": "Llama-3.2-3B",
}


def figures_of(table: str) -> dict[tuple[str, str], list[float]]:
    """Model and row of a table of the README -> the figures of its cell."""
    head, _, *rows = table.splitlines()
    models = re.findall(r"`([\w.]+)`", head)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {
        (COLUMNS[model], row[0]): [float(figure) for figure in cell.split("/")]
        for row in cells
        for model, cell in zip(models, row[-len(models) :], strict=True)
    }


def test_the_figures_of_the_readme_are_the_papers(shared: Path) -> None:
    """Tables 1 to 3 with 10 to 12 in one, then 5, 6 and 7; the paper's own tables are beside the checkout."""
    tables = json.loads((shared / "specs" / "toolrl_paper_tables.json").read_text())

    def published(*parts: tuple[str, str]) -> dict[tuple[str, str], list[float]]:
        found: dict[tuple[str, str], list[float]] = {}
        for table, column in parts:
            for row in tables[table]:
                found.setdefault((row["model"], row["setting"].removesuffix(" (ours)")), []).append(row[column])
        return found

    text = (recipe_folder() / "toolrl" / "README.md").read_text(encoding="utf-8")
    written = [figures_of("| row |" + table.split("\n\n")[0]) for table in text.split("\n| row |")[1:5]]
    expected = [
        published(
            ("table1_bfcl_v3_main", "Overall"),
            ("table2_api_bank_main", "Overall"),
            ("table3_bamboogle_main", "Accuracy"),
            ("table10_bfcl_v3_sft4k_init", "Overall"),
            ("table11_api_bank_sft4k_init", "Overall"),
            ("table12_bamboogle_sft4k_init", "Accuracy"),
        ),
        published(("table5_bfcl_v3_length", "Overall")),
        published(("table6_bfcl_v3_scale", "Overall")),
        published(("table7_bfcl_v3_granularity", "Overall")),
    ]
    assert [36, 9, 12, 12] == [len(table) for table in written]  # 9 rows of 4 models, then 3, 4 and 4 of 3
    assert expected == written
