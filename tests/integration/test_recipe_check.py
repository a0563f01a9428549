"""`recipes check`: seeded mistakes are found and named, and what is no mistake is let pass.

Composes with verl's real configuration and builds verl's real dataclasses; trains nothing and needs no engine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl", allow_module_level=True)

from verl_toolrl.integrations.registered import names_in_source
from verl_toolrl.launch.recipes import Recipe, find_recipe, verl_configs
from verl_toolrl.recipe_check.check import check_recipe
from verl_toolrl.recipe_check.finding import Finding, Report
from verl_toolrl.recipe_check.new import write_recipe
from verl_toolrl.recipe_check.sizes import GROUP_ESTIMATORS
from verl_toolrl.recipe_check.values import CHOICES, DEAD

pytestmark = pytest.mark.usefixtures("read_verls_files_once")

Write = Callable[[str], Recipe]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a recipe of a user that builds on toolrl/grpo and adds some YAML."""

    def recipe(text: str, like: str = "/toolrl/grpo") -> Recipe:
        (tmp_path / "mine.yaml").write_text(f"# @package _global_\ndefaults: [{like}, _self_]\n{text}\n")
        return find_recipe(str(tmp_path / "mine.yaml"))

    return recipe


def nested(key: str, value: str) -> str:
    """YAML of one dotted key; the value is written as it is."""
    parts = key.split(".")
    return "\n".join(f"{'  ' * depth}{part}:" for depth, part in enumerate(parts)) + f" {value}"


def errors(report: Report) -> list[tuple[str, str]]:
    return [(finding.key, finding.message) for finding in report.errors]


ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
NATIVE = "{agent: {default_agent_loop: toolrl_native}, custom: {toolrl: %s}}"

# Key and value that are written, and what the finding must name. Every kind that Hydra accepts without a word.
MISTAKES = [
    # a misspelt key: in a node without a dataclass, in one with, and at the top
    pytest.param("trainer.tset_freq", "5", "trainer.tset_freq", "did you mean 'test_freq'", id="typo in trainer"),
    pytest.param("data.max_promt_length", "9", "data.max_promt_length", "'max_prompt_length'", id="typo in data"),
    # settings of our loops of several turns
    pytest.param(
        ROLLOUT,
        NATIVE % "{toolbx: quickstart}",
        f"{ROLLOUT}.custom.toolrl",
        "did you mean 'toolbox'",
        id="typo in toolrl",
    ),
    pytest.param(ROLLOUT, NATIVE % "{steps: 3}", f"{ROLLOUT}.custom.toolrl.toolbox", "needs a tool set", id="no tools"),
    pytest.param(
        ROLLOUT,
        NATIVE % "{toolbox: quikstart}",
        f"{ROLLOUT}.custom.toolrl",
        "did you mean 'quickstart'",
        id="no such set",
    ),
    pytest.param(
        "trainer.toolrl.alarms",
        "{no_call: 0.5}",
        "trainer.toolrl.alarms",
        "did you mean 'no_call_share'",
        id="no alarm",
    ),
    pytest.param("trainer.toolrl.max_lost_share", "2", "trainer.toolrl.max_lost_share", "at most 1", id="share of 2"),
    pytest.param(
        "trainer.toolrl.log_prob_sample", "8", "trainer.toolrl.log_prob_sample", "bypass_mode=true", id="no bypass"
    ),
    pytest.param(
        "algorithm.adv_estimater", "grpo", "algorithm.adv_estimater", "'adv_estimator'", id="typo in algorithm"
    ),
    pytest.param(f"{ACTOR}.clip_ration", "0.2", f"{ACTOR}.clip_ration", "'clip_ratio'", id="typo in the actor"),
    pytest.param(
        f"{ACTOR}.optim.learning_rate", "1.0", f"{ACTOR}.optim.learning_rate", "OptimizerConfig", id="no field"
    ),
    pytest.param(
        *(f"{ROLLOUT}.tensor_parallel_size", "1", f"{ROLLOUT}.tensor_parallel_size", "'tensor_model_parallel_size'"),
        id="name of another framework",
    ),
    pytest.param(
        f"{ROLLOUT}.agent.num_worker", "1", f"{ROLLOUT}.agent.num_worker", "'num_workers'", id="typo in the agent"
    ),
    pytest.param("trianer.test_freq", "5", "trianer", "did you mean 'trainer'", id="typo at the top"),
    pytest.param("data.n_gpus_per_node", "8", "data.n_gpus_per_node", "'trainer.n_gpus_per_node'", id="wrong place"),
    pytest.param("ray_kwargs.ray_init.num_cpu", "4", "ray_kwargs.ray_init.num_cpu", "'num_cpus'", id="typo for Ray"),
    pytest.param(
        "trainer.toolrl.poll_intervall",
        "1",
        "trainer.toolrl.poll_intervall",
        "'poll_interval'",
        id="our trainer's option",
    ),
    pytest.param(
        "reward.reward_kwargs.corse", "true", "reward.reward_kwargs.corse", "'coarse'", id="our reward's option"
    ),
    pytest.param(
        "algorithm.toolrl.weights", "[1]", "algorithm.toolrl", "these do: toolrl_gdpo", id="our estimators' option"
    ),
    pytest.param("launch.offlod", "true", "launch.offlod", "'offload'", id="our own node"),
    pytest.param("launch.model.layers", "3", "launch.model.layers", "'num_hidden_layers'", id="our own node inside"),
    pytest.param("recipe.tittle", "x", "recipe.tittle", "'title'", id="what a recipe says of itself"),
    # renamed, dead, of another engine
    pytest.param(f"{ROLLOUT}.skip.enable", "true", f"{ROLLOUT}.skip", "skip.rollout", id="renamed"),
    pytest.param("data.continuous_token.enable", "true", "data.continuous_token", "always on", id="gone"),
    pytest.param(
        "reward_model.reward_manager",
        "dapo",
        "reward_model.reward_manager",
        "reward.reward_manager",
        id="legacy reward manager",
    ),
    pytest.param(
        "custom_reward_function.path",
        "a.py",
        "custom_reward_function.path",
        "reward.custom_reward_function",
        id="legacy function",
    ),
    pytest.param(
        f"{ROLLOUT}.multi_turn.enable", "true", f"{ROLLOUT}.multi_turn.enable", "default_agent_loop", id="dead switch"
    ),
    pytest.param(
        f"{ACTOR}.megatron.param_offload", "true", f"{ACTOR}.megatron", "engine=megatron", id="key of another engine"
    ),
    pytest.param(
        "engine.param_offload",
        "true",
        "engine.param_offload",
        "actor_rollout_ref.actor.fsdp_config.param_offload",
        id="inert engine key",
    ),
    # a value of the wrong type, or out of a closed set
    pytest.param(
        "trainer.total_epochs", "many", "trainer.total_epochs", "an integer is wanted", id="text for a number"
    ),
    pytest.param("trainer.save_freq", "after_each_epoch", "trainer.save_freq", "an integer", id="word of supervised"),
    pytest.param(
        "trainer.total_training_steps", "'100'", "trainer.total_training_steps", "an integer", id="number in quotes"
    ),
    pytest.param(
        f"{ACTOR}.use_kl_loss", "'no'", f"{ACTOR}.use_kl_loss", "true or false is wanted", id="text for a switch"
    ),
    pytest.param(f"{ACTOR}.ppo_epochs", "1.5", f"{ACTOR}.ppo_epochs", "an integer is wanted", id="part of a number"),
    pytest.param("launch.tensor_parallel", "two", "launch.tensor_parallel", "an integer", id="text in our own node"),
    pytest.param("data.shuffle", "1", "data.shuffle", "true or false is wanted", id="1 for a switch"),
    pytest.param("data.truncation", "cut", "data.truncation", "known: error, left, right", id="unknown truncation"),
    pytest.param("trainer.logger", "[consol]", "trainer.logger", "did you mean 'console'", id="unknown logger"),
    pytest.param(
        f"{ACTOR}.loss_agg_mode", "mean", f"{ACTOR}.loss_agg_mode", "Invalid loss_agg_mode", id="unknown aggregation"
    ),
    pytest.param(
        f"{ACTOR}.optim.lr_scheduler_type",
        "linear",
        f"{ACTOR}.optim.lr_scheduler_type",
        "cosine",
        id="unknown scheduler",
    ),
    # a name that nobody registered
    pytest.param(
        "algorithm.adv_estimator", "grop", "algorithm.adv_estimator", "did you mean 'grpo'", id="unknown estimator"
    ),
    pytest.param(
        "reward.reward_manager.name",
        "tolrl",
        "reward.reward_manager.name",
        "did you mean 'toolrl'",
        id="unknown manager",
    ),
    pytest.param(
        f"{ROLLOUT}.agent.default_agent_loop",
        "toolrl_single",
        f"{ROLLOUT}.agent.default_agent_loop",
        "'toolrl_single_turn'",
        id="unknown loop",
    ),
    pytest.param(
        "trainer.v1.trainer_mode", "toolrl_snyc", "trainer.v1.trainer_mode", "'toolrl_sync'", id="unknown trainer"
    ),
    pytest.param(f"{ROLLOUT}.name", "vlm", f"{ROLLOUT}.name", "did you mean 'vllm'", id="unknown engine"),
    pytest.param(
        f"{ROLLOUT}.multi_turn.format", "hermess", f"{ROLLOUT}.multi_turn.format", "'hermes'", id="unknown parser"
    ),
    pytest.param(
        f"{ACTOR}.policy_loss.loss_mode", "vanila", f"{ACTOR}.policy_loss.loss_mode", "'vanilla'", id="unknown loss"
    ),
    pytest.param("reward.reward_kwargs.mode", "relased", "reward.reward_kwargs.mode", "'released'", id="unknown mode"),
    pytest.param(
        "actor_rollout_ref.model.external_lib",
        "no_such_lib",
        "actor_rollout_ref.model.external_lib",
        "cannot be imported",
        id="no module",
    ),
    # a batch size that does not divide
    pytest.param(
        "data.train_batch_size", "500", "data.train_batch_size", "does not divide by", id="batch and mini-batch"
    ),
    pytest.param(
        f"{ACTOR}.ppo_mini_batch_size",
        "1024",
        f"{ACTOR}.ppo_mini_batch_size",
        "is more than",
        id="mini-batch over batch",
    ),
    pytest.param("trainer.n_gpus_per_node", "7", "trainer.n_gpus_per_node", "7 model copies", id="devices"),
    pytest.param(
        f"{ROLLOUT}.tensor_model_parallel_size", "3", f"{ROLLOUT}.tensor_model_parallel_size", "8 devices", id="servers"
    ),
    pytest.param("data.gen_batch_size", "100", "data.gen_batch_size", "does not divide by 100", id="generation batch"),
    pytest.param(f"{ROLLOUT}.n", "1", f"{ROLLOUT}.n", "2 or more", id="a group of one"),
    # a length that the model cannot hold
    pytest.param(
        "data.max_response_length", "32768", "data.max_response_length", "32768 positions", id="longer than the model"
    ),
    pytest.param(
        f"{ROLLOUT}.max_model_len", "2048", f"{ROLLOUT}.max_model_len", "responses are cut", id="shorter than a row"
    ),
    pytest.param(
        f"{ACTOR}.ppo_max_token_len_per_gpu",
        "2048",
        f"{ACTOR}.ppo_max_token_len_per_gpu",
        "cannot hold a row",
        id="micro batch",
    ),
]


# Mistakes that hide each other stand in different recipes; all others stand together in the first.
APART = {
    **dict.fromkeys(["batch and mini-batch", "servers", "shorter than a row", "typo in toolrl"], 1),
    **dict.fromkeys(["mini-batch over batch", "longer than the model", "generation batch", "no tools"], 2),
    **dict.fromkeys(["devices", "micro batch", "no such set", "unknown mode"], 3),
    **dict.fromkeys(["a group of one", "unknown aggregation", "unknown manager"], 4),
    "unknown scheduler": 5,
}


def merged(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both trees; they set different keys."""
    result = dict(base)
    for key, value in other.items():
        assert isinstance(value, dict) or key not in base, f"{key} is set twice: name one of them in APART"
        result[key] = merged(base.get(key, {}), value) if isinstance(value, dict) else value
    return result


# Runs before anything else in its process, so that nothing has imported verl, and shows at the end that nothing did.
CHECK = """
import sys
from verl_toolrl.cli import app
try:
    app(["recipes", "check", "--json", *sys.argv[1:]])
finally:
    print(sorted({"verl", "torch", "ray", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Finding]]:
    """Findings by what was written: all of `MISTAKES` in a few recipes, given to one call of the command."""
    folder = tmp_path_factory.mktemp("seeded")
    trees: dict[str, dict[str, Any]] = {}
    for case in MISTAKES:
        name = f"mistake_{APART.get(str(case.id), 0)}"
        trees[name] = merged(trees.get(name, {}), yaml.safe_load(nested(*map(str, case.values[:2]))))
    for name, tree in trees.items():
        text = f"# @package _global_\ndefaults: [/toolrl/grpo, _self_]\n{yaml.safe_dump(tree)}"
        (folder / f"{name}.yaml").write_text(text)
    files = [f"{name}.yaml" for name in trees]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *files], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 1, done.stderr
    reports = {Path(report["recipe"]).stem: report["findings"] for report in json.loads(done.stdout)}
    found = {name: [Finding(**finding) for finding in findings] for name, findings in reports.items()}
    return {case.values[:2]: found[f"mistake_{APART.get(str(case.id), 0)}"] for case in MISTAKES}


@pytest.mark.parametrize(("key", "value", "named", "message"), MISTAKES)
def test_a_seeded_mistake_is_found_with_its_file_and_key(
    key: str, value: str, named: str, message: str, seeded: dict[tuple[str, str], list[Finding]]
) -> None:
    found = [finding for finding in seeded[key, value] if finding.is_error and finding.key == named]
    assert found and message in found[0].message, seeded[key, value]
    assert found[0].file.startswith("mistake_") and found[0].line > 2, found[0]


def test_a_check_loads_none_of_verls_libraries(write: Write) -> None:
    path = write("trainer: {total_epochs: 3}").label
    done = subprocess.run([sys.executable, "-c", CHECK, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n"), done.stdout


def test_verls_dataclasses_are_the_same_without_its_libraries() -> None:
    """Every class that verl's configurations name, and every class inside them: fields, types and defaults."""
    code = """
import dataclasses, json, re, sys
from verl_toolrl.integrations import verl_config
from verl_toolrl.launch.recipes import verl_configs
if sys.argv[1] == "all":
    verl_config._is_light = lambda: False
text = "".join(path.read_text() for path in verl_configs().rglob("*.yaml"))
classes = [verl_config.config_class(name) for name in sorted(set(re.findall(r"_target_: (verl[.\\w]+)", text)))]
classes = [cls for cls in classes if cls]
for cls in classes:
    hints = verl_config.field_hints(cls)
    classes += [found for found in map(verl_config.nested_class, hints.values()) if found and found not in classes]
    defaults = {field.name: repr(field.default) for field in dataclasses.fields(cls) if "<" not in repr(field.default)}
    print(cls.__module__, cls.__qualname__, {name: str(hint) for name, hint in hints.items()}, defaults)
print("torch" in sys.modules, file=sys.stderr)
"""
    light, whole = (
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        for how in ("light", "all")
    )
    assert light.stdout.count("\n") > 40
    assert whole.stdout == light.stdout
    assert (light.stderr, whole.stderr.splitlines()[-1]) == ("False\n", "True")


def test_a_mistake_in_a_file_on_the_users_search_path_is_placed_there(write: Write, tmp_path: Path) -> None:
    """A recipe that finds another, and a choice of their own, in a folder of theirs."""
    (tmp_path / "shared" / "model").mkdir(parents=True)
    (tmp_path / "shared" / "theirs.yaml").write_text(
        "# @package _global_\ndefaults: [/toolrl/grpo, _self_, {override /model: own}]\ntrainer: {tset_freq: 5}\n"
    )
    (tmp_path / "shared" / "model" / "own.yaml").write_text(
        "# @package _global_\nactor_rollout_ref: {model: {path: their/model, pth: x}}\n"
    )
    report = check_recipe(write(f"hydra: {{searchpath: ['file://{tmp_path}/shared']}}", "/theirs"), [])
    assert [("actor_rollout_ref.model.pth", "own.yaml", 2), ("trainer.tset_freq", "theirs.yaml", 3)] == sorted(
        (finding.key, Path(finding.file).name, finding.line) for finding in report.errors
    )


def test_a_mistake_on_the_command_line_is_placed_there(write: Write) -> None:
    recipe = write("trainer: {save_freq: 3}")
    report = check_recipe(recipe, ["+trainer.tset_freq=5", "trainer.save_freq=often"])
    assert [("trainer.tset_freq", "command line"), ("trainer.save_freq", "command line")] == [
        (finding.key, finding.place) for finding in report.errors
    ]


def test_the_line_of_a_mistake_is_named(write: Write) -> None:
    report = check_recipe(write("trainer:\n  save_freq: 3\n  tset_freq: 5"), [])
    assert [("trainer.tset_freq", 5)] == [(finding.key, finding.line) for finding in report.errors]


@pytest.mark.parametrize(
    ("overrides", "named", "message"),
    [
        (["engine=megatron", "+actor_rollout_ref.actor.fsdp_config.param_offload=true"], "fsdp_config", "engine=fsdp"),
        (["engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=8"], "tensor_model", "12 attention heads"),
        (["engine=megatron", f"{ACTOR}.megatron.pipeline_model_parallel_size=8"], "pipeline_model", "28 layers"),
        (["engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_sise=8"], "", "tensor_model_parallel_sise"),
        (["hardware=cpu", "engine=megatron"], "ray_kwargs", "engine=megatron needs CUDA"),
        (["model_engine=megatron"], "ray_kwargs", "chosen by engine=megatron"),
        (["hardware=gpu1", "mode=separate_async"], "ray_kwargs", "needs two GPUs"),
        (["hardware=tpu"], "", "Could not find 'hardware/tpu'"),
        (["method=ppo", "critic.ppo_mini_batch_size=100"], "critic.ppo_mini_batch_size", "does not divide"),
        (["method=gdpo", f"{ROLLOUT}.n=1"], f"{ROLLOUT}.n", "toolrl_gdpo compares"),
        (["hardware=cpu", "algorithm.rollout_correction.bypass_mode=false"], "log_prob_sample", "the trainer refuses"),
        (
            ["algorithm.adv_estimator=toolrl_gdpo", "+algorithm.toolrl.wieghts=[1]"],
            "algorithm.toolrl.wieghts",
            "did you mean 'weights'",
        ),
    ],
)
def test_an_unsupported_combination_says_why(overrides: list[str], named: str, message: str) -> None:
    report = check_recipe(find_recipe("toolrl/grpo"), overrides)
    assert any(named in finding.key and message in finding.message for finding in report.errors), errors(report)


def test_separate_devices_are_asked_for_key_by_key() -> None:
    """What verl's trainer asserts when it starts, and what it fails on after that."""
    overrides = [
        "trainer.v1.trainer_mode=toolrl_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        f"{ROLLOUT}.n_gpus_per_node=0",
        "reward.reward_model.enable=true",
        "actor_rollout_ref.hybrid_engine=false",
    ]
    found = {key for key, _ in errors(check_recipe(find_recipe("toolrl/grpo"), overrides))}
    assert found >= {
        "trainer.v1.separate_async.parameter_sync_step",
        f"{ROLLOUT}.nnodes",
        f"{ROLLOUT}.n_gpus_per_node",
        f"{ROLLOUT}.checkpoint_engine.backend",
        "reward.reward_model.enable_resource_pool",
        "actor_rollout_ref.hybrid_engine",
    }
    servers = ["mode=separate_async", f"{ROLLOUT}.nnodes=3", f"{ROLLOUT}.n_gpus_per_node=1"]
    report = check_recipe(find_recipe("toolrl/grpo"), [*servers, f"{ROLLOUT}.tensor_model_parallel_size=2"])
    assert [f"{ROLLOUT}.n_gpus_per_node"] == [key for key, _ in errors(report)]


def test_options_that_are_null_are_off() -> None:
    off = ["trainer.toolrl.log_prob_sample=null", "+trainer.toolrl.alarms=null"]
    overrides = ["hardware=cpu", "algorithm.rollout_correction.bypass_mode=false", *off]
    assert errors(check_recipe(find_recipe("toolrl/grpo"), overrides)) == []


def test_estimators_that_compare_the_rollouts_of_a_prompt_are_known() -> None:
    """The others that are registered compare with nothing, or with a critic; a new one belongs to either."""
    alone = {"gae", "reinforce_plus_plus", "remax"}
    assert names_in_source("algorithm.adv_estimator") == GROUP_ESTIMATORS | alone


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.max_lenght", "9", "'max_length'"),
        ("data.max_length", "9000", "8192 positions"),
        ("data.max_length", "long", "an integer"),
        ("optim.learning_rate", "1.0", "OptimizerConfig"),
        ("engine.strategy", "fsdp3", "not supported"),
    ],
)
def test_mistakes_in_a_supervised_recipe_are_found(
    key: str, value: str, message: str, write: Callable[..., Recipe]
) -> None:
    text = nested(key, value) + "\nlaunch: {model: {max_position_embeddings: 8192}}"
    report = check_recipe(write(text, "/toolrl/quickstart_sft"), [])
    assert any(message in finding.message for finding in report.errors), errors(report)


def test_a_supervised_recipe_may_save_after_each_epoch() -> None:
    report = check_recipe(find_recipe("toolrl/quickstart_sft"), ["trainer.save_freq=after_each_epoch"])
    assert errors(report) == []


# One for each template; the values of all recipes are checked in test_recipes_pass.py.
@pytest.mark.parametrize("like", ["toolrl/ppo", "toolrl/quickstart", "tool_agent/ppo"])
def test_a_new_recipe_passes_the_check(like: str, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.yaml", like)
    assert errors(check_recipe(find_recipe(str(tmp_path / "mine.yaml")), [])) == []


def test_a_start_from_a_checkpoint_asks_for_it_and_takes_it() -> None:
    left = check_recipe(find_recipe("toolrl/grpo"), ["start=sft"]).findings
    assert [Finding("launch.checkpoint", "must be given", False)] == [
        Finding(finding.key, finding.message, finding.is_error) for finding in left
    ]
    assert check_recipe(find_recipe("toolrl/grpo"), ["start=sft", "launch.checkpoint=/runs/sft"]).findings == []


def test_a_name_that_a_module_beside_the_recipe_registers_is_known(tmp_path: Path) -> None:
    """`external_lib` names a file in the working directory, as verl would find it."""
    (tmp_path / "their_module.py").write_text(
        "from verl.trainer.ppo.core_algos import register_adv_est\n"
        "@register_adv_est('theirs')\n"
        "def compute(token_level_rewards, response_mask, **kwargs): ...\n"
    )
    for name in ("theirs", "their"):
        (tmp_path / f"names_{name}.yaml").write_text(
            "# @package _global_\ndefaults: [/toolrl/grpo, _self_]\n"
            "actor_rollout_ref: {model: {external_lib: 'verl_toolrl.plugin,their_module'}}\n"
            f"{nested('algorithm.adv_estimator', name)}\n"
        )
    files = ["names_theirs.yaml", "names_their.yaml"]
    command = [Path(sys.executable).parent / "verl-toolrl", "recipes", "check", "--json", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    known, unknown = (report["findings"] for report in json.loads(done.stdout))
    assert (done.returncode, known) == (1, []), done.stdout
    assert ["algorithm.adv_estimator"] == [finding["key"] for finding in unknown]
    assert "did you mean 'theirs'" in unknown[0]["message"]


def test_a_key_that_the_recipe_itself_reads_is_no_mistake(write: Write) -> None:
    text = "mine: {length: 512}\ndata: {max_response_length: '${mine.length}'}"
    assert errors(check_recipe(write(text), [])) == []
    assert [("mine", True)] == [
        (key, "nothing reads it" in text) for key, text in errors(check_recipe(write("mine: 1"), []))
    ]


def test_nothing_is_downloaded_for_a_check(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    report = check_recipe(write(nested("actor_rollout_ref.model.path", "someone/unheard-of")), ["method=ppo"])
    assert errors(report) == []


@pytest.mark.parametrize("key", [key for key in DEAD if "." in key])
def test_a_key_called_dead_is_still_in_verl_and_nothing_reads_it(key: str) -> None:
    """When one of them comes back to life, or goes, the table is wrong."""
    from verl_toolrl.recipe_check.check import _verl_tree
    from verl_toolrl.recipe_check.sizes import select

    *path, name = key.split(".")
    assert name in select(_verl_tree("ppo_trainer", "dp"), ".".join(path))
    root = verl_configs().parents[1]
    # Readers of the V1 trainer; the dataclass that declares the key is none, nor are other classes' switches `enable`.
    readers = re.compile(
        rf"multi_turn\.{name}\b|agent\.{name}\b" if name == "enable" else rf"\.{name}\b|[\"']{name}[\"']"
    )
    skipped = ("workers/config", "ray_trainer.py", "main_ppo_v0.py", "experimental/fully_async", "rollout/schemas.py")
    files = [path for path in root.rglob("*.py") if not any(part in str(path) for part in skipped)]
    assert [str(path) for path in files if readers.search(path.read_text(errors="ignore"))] == []


# Dtypes and devices are known to torch and vLLM, not to verl.
VERLS_CHOICES = {key: values for key, values in CHOICES.items() if not key.endswith(("dtype", "device"))}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VERLS_CHOICES.items() for value in values])
def test_a_value_called_known_stands_in_verls_source(key: str, value: str) -> None:
    root = verl_configs().parents[1]
    assert any(re.search(rf"[\"']{value}[\"']", path.read_text(errors="ignore")) for path in root.rglob("*.py"))


def test_the_command_names_file_key_and_exit_code(write: Write) -> None:
    recipe = write("trainer: {tset_freq: 5}")
    done = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.cli", "recipes", "check", f"{recipe.label}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "mine.yaml:3: trainer.tset_freq: " in done.stdout and "did you mean 'test_freq'" in done.stdout


def test_verls_own_command_line_takes_the_recipe(write: Write) -> None:
    """What a user types without our wrapper: a recipe of their own in `--config-dir`, which builds on one of ours."""
    text = "data: {train_batch_size: 64}\nactor_rollout_ref: {actor: {ppo_mini_batch_size: 64}}"
    words = ["--config-dir", str(write(text).folder), "--config-name", "mine"]
    choices = ["model=qwen2.5_3b", "engine=megatron", "rollout=sglang", "hardware=gpu8"]
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *words, *choices, "--cfg", "job", "--resolve"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = yaml.safe_load(done.stdout)
    assert config["actor_rollout_ref"]["model"]["path"] == "Qwen/Qwen2.5-3B-Instruct"
    assert config["actor_rollout_ref"]["actor"]["strategy"] == "megatron"
    assert config["actor_rollout_ref"]["rollout"]["name"] == "sglang"
    assert config["data"]["train_batch_size"] == 64
