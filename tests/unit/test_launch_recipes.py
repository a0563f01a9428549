"""Recipes by name and path, the command that is built from them, and what is checked before a start.

Composed with verl's own configuration, which is located without importing verl; skipped where verl is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.launch.command import Command, build_command, ray_cluster
from verl_toolrl.launch.launcher import checkpoint_folder, lacks_last_validation, saving_note
from verl_toolrl.launch.preflight import available_memory, check_engine, check_files, check_memory, check_ports
from verl_toolrl.launch.recipes import Composed, Recipe, compose, find_recipe, known_recipes, quote
from verl_toolrl.launch.runs import Run, new_run

needs_verl = pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="needs verl beside us")


def composed(**values: Any) -> Composed:
    """A composed recipe of just these dotted keys (`__` for the dot)."""
    from omegaconf import OmegaConf

    config = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return Composed(config)


def command_of(folder: Path, overrides: list[str], **values: Any) -> Command:
    run = new_run(folder / "out", "toolrl/quickstart", overrides)
    values.setdefault("trainer__logger", ["console", "file"])
    return build_command(Recipe("toolrl/quickstart"), run, composed(**values), resume=False, cluster=None)


@needs_verl
def test_composing_a_recipe_does_not_import_verl() -> None:
    code = (
        "import sys; from verl_toolrl.launch.recipes import compose, find_recipe\n"
        "composed = compose(find_recipe('toolrl/quickstart'), ['trainer.total_training_steps=3'])\n"
        "assert composed.on_cpu and composed.hardware == 'cpu' and composed.get('trainer.total_training_steps') == 3\n"
        "print([name for name in ('verl', 'ray', 'torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@needs_verl
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toolrl/quikstart", "did you mean 'toolrl/quickstart'"),
        ("quickstart", "unknown recipe 'quickstart'"),
        ("no/such/file.yaml", "is not a file"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises((UnknownNameError, ConfigError), match=message):
        find_recipe(name)


@needs_verl
def test_parts_of_recipes_are_not_offered_as_recipes() -> None:
    assert "toolrl/quickstart" in known_recipes()
    assert not [name for name in known_recipes() if name.startswith("hardware/")]


@needs_verl
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devce=cpu", "no configuration key 'trainer.devce', did you mean 'trainer.device'"),
        ("zzz.qqq=1", r"a new key is added with \+zzz.qqq=..."),
        ("trainer", "'trainer' is no override"),
        ("a==b=[", "is no override"),
        ("trainer.v1.sampler=[1", "is no override"),
        ("model_engine=foo", "Available options in 'model_engine': dp megatron"),
        ("hardware=tpu", "Could not find 'hardware/tpu'"),
        ("hardware=null", "must be a string or a list"),
    ],
)
def test_a_malformed_override_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose(find_recipe("toolrl/quickstart"), [override])
    assert "\n" not in str(caught.value)
    assert "search path" not in str(caught.value)


@needs_verl
def test_an_unknown_key_is_named_where_a_choice_is_part_of_its_name() -> None:
    with pytest.raises(ConfigError, match="no configuration key 'actor_rollout_ref.rollout.mm'"):
        compose(find_recipe("toolrl/quickstart"), ["rollout=sglang", "actor_rollout_ref.rollout.mm=4"])


@needs_verl
def test_a_recipe_of_ones_own_is_composed_from_its_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [/toolrl/quickstart, _self_]\ntrainer: {experiment_name: mine}\n")
    recipe = find_recipe(str(mine))
    assert ["--config-dir", str(tmp_path), "--config-name", "mine"] == recipe.arguments
    assert "mine" == compose(recipe, []).get("trainer.experiment_name")
    assert compose(recipe, []).on_cpu


@needs_verl
def test_a_recipe_named_like_one_of_verls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ppo_trainer.yaml").write_text("defaults: []\n")
    with pytest.raises(ConfigError, match="rename the file"):
        find_recipe(str(tmp_path / "ppo_trainer.yaml"))


def test_a_machine_without_a_gpu_does_not_choose_the_cpu(tmp_path: Path) -> None:
    assert "VERL_PLATFORM" not in command_of(tmp_path, [], trainer__device="cuda").environment
    assert command_of(tmp_path, [], trainer__device="cpu").environment["VERL_PLATFORM"] == "cpu"


@needs_verl
@pytest.mark.parametrize(
    ("recipe", "entry_point"),
    [
        ("toolrl/quickstart", "verl.trainer.main_ppo"),
        ("toolrl/quickstart_sft", "verl_toolrl.integrations.cpu.sft"),
        ("ppo_trainer", "verl.trainer.main_ppo"),
    ],
)
def test_a_recipe_runs_with_the_trainer_it_is_for(recipe: str, entry_point: str) -> None:
    made = compose(find_recipe(recipe), [])
    assert entry_point == made.entry_point
    assert made.on_cpu == recipe.startswith("toolrl/quickstart")


def test_the_shown_line_is_what_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    overrides = ["data.train_files='a b.parquet'", "trainer.total_training_steps=3"]
    command = command_of(folder, overrides, trainer__device="cpu")
    words = shlex.split(command.shell_line())
    assert {f"{key}={value}" for key, value in command.environment.items()} == set(words[:2])
    assert command.argv[1:] == words[3:]
    assert overrides == command.argv[-2:]
    assert f"trainer.default_local_dir='{folder}/out/checkpoints'" in command.argv


def test_what_the_user_overrides_is_left_to_the_user(tmp_path: Path) -> None:
    command = command_of(tmp_path, ["trainer.default_local_dir=/elsewhere"])
    assert ["trainer.default_local_dir=/elsewhere"] == [a for a in command.argv if "default_local_dir" in a]


@pytest.mark.parametrize(
    ("loggers", "expected"),
    [
        pytest.param(["console", "file"], [], id="there already"),
        pytest.param(["console", "wandb"], ["trainer.logger=[console,wandb,file]"], id="added"),
        pytest.param("console", ["trainer.logger=[console,file]"], id="a single name"),
    ],
)
def test_the_metrics_file_is_always_written(tmp_path: Path, loggers: Any, expected: list[str]) -> None:
    argv = command_of(tmp_path, [], trainer__logger=loggers).argv
    assert expected == [argument for argument in argv if argument.startswith("trainer.logger=")]


@pytest.mark.parametrize("value", [3, [3], {"console": True}])
def test_loggers_that_are_no_names_are_one_sentence(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="trainer.logger: a logger or a list of loggers is wanted, found "):
        command_of(tmp_path, [], trainer__logger=value)


@pytest.mark.parametrize("value", [None, 3])
def test_a_folder_of_checkpoints_that_is_none_is_one_sentence(tmp_path: Path, value: Any) -> None:
    run = new_run(tmp_path / "out", "r", ["trainer.default_local_dir=..."])
    with pytest.raises(ConfigError, match="trainer.default_local_dir: a folder is wanted, found (null|3)"):
        checkpoint_folder(run, composed(trainer__default_local_dir=value))


def test_the_workers_of_a_foreign_cluster_get_the_variables_through_ray(tmp_path: Path) -> None:
    run: Run = new_run(tmp_path / "out", "r", [])
    recipe = composed(trainer__device="cpu", trainer__logger=["file"], ray_kwargs__ray_init__num_cpus=2)
    command = build_command(Recipe("r"), run, recipe, resume=False, cluster="10.0.0.1:6379")
    prefix = "+ray_kwargs.ray_init.runtime_env.env_vars."
    assert f"{prefix}VERL_PLATFORM='cpu'" in command.argv
    assert any(argument.startswith(f"{prefix}VERL_TOOLRL_RUN_ID=") for argument in command.argv)
    assert "RAY_TMPDIR" not in command.bookkeeping


def test_resuming_turns_a_switched_off_resume_mode_on(tmp_path: Path) -> None:
    run = new_run(tmp_path / "out", "r", ["trainer.resume_mode=disable"])
    recipe = composed(trainer__resume_mode="disable", trainer__logger=["file"])
    argv = build_command(Recipe("r"), run, recipe, resume=True, cluster=None).argv
    assert ["trainer.resume_mode=auto"] == [argument for argument in argv if "resume_mode" in argument]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data_source": "x", "reward_model": {"ground_truth": "y"}}', r"rows.jsonl: row 0: .*prompt"),
        ("", "no rows"),
        ("{broken", "cannot be read"),
    ],
    ids=["without a column", "empty", "broken"],
)
def test_rows_of_another_form_are_found_before_anything_starts(content: str, message: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    keys = {"data__train_files": str(rows), "trainer__v1__trainer_mode": "toolrl_sync"}
    with pytest.raises(DatasetError, match=message):
        check_files(composed(**keys))
    # What another dataset class reads is for it to say.
    check_files(composed(**keys, data__custom_cls__path="theirs.py"))


@pytest.mark.parametrize(
    ("frequency", "logged", "lacks"),
    [
        (16, [(0, "val-core/a"), (16, "critic/score/mean")], True),
        (16, [(0, "val-core/a"), (16, "val-core/a")], False),
        (-1, [(16, "critic/score/mean")], False),
    ],
    ids=["ended in it", "made", "none is wanted"],
)
def test_the_validation_after_the_last_step_is_made_up_for(
    frequency: int, logged: list[tuple[int, str]], lacks: bool, tmp_path: Path
) -> None:
    """verl saves the last step and then validates; a run that was ended in between has all but that."""
    run = new_run(tmp_path, "r", [])
    lines = [json.dumps({"step": step, "data": {key: 0.5}}) for step, key in logged]
    run.file("metrics.jsonl").write_text("\n".join([*lines, ""]))
    recipe = composed(trainer__test_freq=frequency, ray_kwargs__ray_init__num_cpus=2)
    assert lacks == lacks_last_validation(run, recipe, 16)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"trainer__save_freq": -1, "actor_rollout_ref__actor": {}}, "saves no checkpoint (trainer.save_freq=-1)"),
        ({"trainer__save_freq": 0, "actor_rollout_ref__actor": {}}, "saves no checkpoint (trainer.save_freq=0)"),
        ({"trainer__save_freq": -1, "engine__strategy": "fsdp"}, "saves only its last step (trainer.save_freq=-1)"),
        ({"trainer__save_freq": 4, "actor_rollout_ref__actor": {}}, ""),
        ({"trainer__save_freq": "after_each_epoch"}, ""),
    ],
)
def test_a_run_that_saves_nothing_says_so(keys: dict[str, Any], said: str) -> None:
    expected = [f"{said}: trainer.save_freq=N saves every N steps"] if said else []
    assert expected == saving_note(composed(**keys))


def test_a_run_that_only_validates_leaves_nothing_of_the_users_choice_for_it(tmp_path: Path) -> None:
    run = new_run(tmp_path / "out", "r", ["trainer.val_before_train=false", "trainer.test_freq=16"])
    recipe = composed(trainer__logger=["file"])
    argv = build_command(Recipe("r"), run, recipe, resume=True, cluster=None, only_validate=True).argv
    assert ["trainer.val_before_train=true", "trainer.val_only=true"] == [word for word in argv if ".val_" in word]


def test_an_engine_that_is_not_installed_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rollout.name=vllm: vllm is not installed; `make setup` brings it"):
        check_engine(composed(actor_rollout_ref__rollout__name="vllm"))
    check_engine(composed(actor_rollout_ref__rollout__name="somebodys"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/a/b-c_1.5", "/a/b-c_1.5"), ("/a b", "'/a b'"), ("/it's", "'/it\\'s'"), ("/a=b", "'/a=b'"), ("/ü", "'/ü'")],
)
def test_texts_are_quoted_for_hydra(value: str, expected: str) -> None:
    assert expected == quote(value)


@needs_verl
@pytest.mark.parametrize(
    "folder", ["plain", "with blank", "it's", "a=b,c", "100%", "{x}", "ü[1]", "back\\slash", "end\\", "\\'"]
)
def test_hydra_reads_back_what_was_quoted(folder: str) -> None:
    overrides = [f"trainer.default_local_dir={quote('/runs/' + folder)}"]
    assert f"/runs/{folder}" == compose(Recipe("ppo_trainer"), overrides).get("trainer.default_local_dir")


def test_a_ray_cluster_is_joined_only_where_there_is_one(tmp_path: Path) -> None:
    environ = {"RAY_TMPDIR": str(tmp_path)}
    assert ray_cluster(composed(), environ) is None
    assert ray_cluster(composed(), {"RAY_ADDRESS": "10.0.0.1:6379"}) == "10.0.0.1:6379"
    assert ray_cluster(composed(ray_kwargs__ray_init__address="local"), environ) is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert ray_cluster(composed(), environ) == address
    # The cluster was killed; its file is still there.
    assert ray_cluster(composed(), environ) is None


def test_a_port_in_use_is_found_before_the_start() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use .*dashboard_port"):
            check_ports(composed(ray_kwargs__ray_init__dashboard_port=port))
        # A port that the configuration names but does not open.
        check_ports(composed(transfer_queue__metrics__port=port, transfer_queue__metrics__enabled=False))
    check_ports(composed(ray_kwargs__ray_init__dashboard_port=port))


@needs_verl
@pytest.mark.parametrize("given", ["+ray_kwargs.ray_init.dashboard_port={}", "transfer_queue.metrics.port={}"])
def test_the_remedy_for_a_port_in_use_is_an_override_that_works(given: str) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        overrides = ["transfer_queue.metrics.enabled=true", given.format(port)]
        with pytest.raises(ConfigError, match=f"port {port} is in use") as refused:
            check_ports(compose(Recipe("ppo_trainer"), overrides))
    remedy = str(refused.value).rpartition(" ")[2]
    key = given.partition("=")[0].lstrip("+")
    # In the place of the one that was given, and behind it.
    for before in ([], overrides):
        assert abs(compose(Recipe("ppo_trainer"), [*before, remedy]).get(key) - port) == 1


def test_a_number_that_is_no_port_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="ray_init.dashboard_port: a port from 1 to 65535 is wanted, found 99999"):
        check_ports(composed(ray_kwargs__ray_init__dashboard_port=99999))


def test_too_little_memory_is_refused_with_figures() -> None:
    assert 0 < available_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + 1
    check_memory(composed(launch__memory_gb=0.001))
    check_memory(composed())
    with pytest.raises(ConfigError, match=r"needs about 1000000 GB of memory and [\d.]+ GB are free; .*--force"):
        check_memory(composed(launch__memory_gb=1e6))
    with pytest.raises(ConfigError) as refused:
        check_memory(composed(launch__memory_gb=1e6), can_force=False)
    assert "--force" not in str(refused.value)
    with pytest.raises(ConfigError, match="launch.memory_gb: a number"):
        check_memory(composed(launch__memory_gb="much"))


@pytest.mark.parametrize("value", [3, [3], {"a": "b"}])
def test_files_that_are_no_names_are_one_sentence(value: Any) -> None:
    with pytest.raises(ConfigError, match="data.train_files: a file or a list of files is wanted, found "):
        check_files(composed(data__train_files=value))
    # What another dataset class is given is for it to say.
    check_files(composed(data__train_files=value, data__custom_cls__path="theirs.py"))


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    there = tmp_path / "train.parquet"
    there.touch()
    check_files(composed(data__train_files=str(there), data__val_files=[str(there), "hdfs://far/away.parquet"]))
    with pytest.raises(ConfigError, match="data.val_files: .*gone.parquet does not exist"):
        check_files(composed(data__train_files=str(there), data__val_files=[str(tmp_path / "gone.parquet")]))
    with pytest.raises(ConfigError, match="model.path"):
        check_files(composed(actor_rollout_ref__model__path=str(tmp_path / "no model")))
    check_files(composed(actor_rollout_ref__model__path="Qwen/Qwen2.5-3B-Instruct"))
