"""What `train` asks `recipes check` before it starts: every mistake is refused, and what cannot be judged is not."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl beside us", allow_module_level=True)

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch import launcher
from verl_toolrl.launch.launcher import Plan, plan_run
from verl_toolrl.launch.preflight import check_recipe
from verl_toolrl.launch.recipes import compose, find_recipe
from verl_toolrl.recipe_check.before_start import inspect

TOOLBOX = "actor_rollout_ref.rollout.custom.toolrl.toolbox"
GOOD = "<think> a </think>\n<response> Yes. </response>"
BROKEN = '<think> a </think>\n<tool_call>\n{"name": broken\n</tool_call>'


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[str], list[str]]:
    """Overrides that name a file with one row of this ground truth."""

    def make(ground_truth: str) -> list[str]:
        file = tmp_path / "rows.jsonl"
        prompt = [{"role": "user", "content": "Now."}]
        row = {"data_source": "rlla", "prompt": prompt, "reward_model": {"ground_truth": ground_truth}}
        file.write_text(json.dumps(row))
        return [f"data.train_files={file}", f"data.val_files={file}"]

    return make


@pytest.mark.parametrize(
    ("recipe", "overrides", "messages"),
    [
        pytest.param("tool_agent/grpo", ["hardware=gpu1"], [f"{TOOLBOX}: must be given ({TOOLBOX}=...)"], id="left"),
        pytest.param("toolrl/grpo", ["start=sft"], ["launch.checkpoint: must be given"], id="left of a group"),
        pytest.param("ppo_trainer", [], ["rollout.name: must be given"], id="left of verl's own"),
        pytest.param(
            *("tool_agent/quickstart", [f"{TOOLBOX}=gone.yaml"], ["tool set gone.yaml: no such file"]), id="no tools"
        ),
        pytest.param(
            "toolrl/quickstart",
            ["+trainer.tset_freq=3", "data.train_batch_size=eight"],
            ["command line: trainer.tset_freq: ", "did you mean 'test_freq'", "data.train_batch_size: an integer"],
            id="all of several",
        ),
    ],
)
def test_what_the_check_finds_is_refused(recipe: str, overrides: list[str], messages: list[str]) -> None:
    refused = "\n".join(inspect(recipe, overrides, rows=False)["refused"])
    assert [message for message in messages if message not in refused] == []


def test_a_ground_truth_that_cannot_be_read_is_found_in_the_first_row(rows: Callable[[str], list[str]]) -> None:
    found = inspect("toolrl/quickstart", rows(BROKEN), rows=True)
    assert ["data.train_files: rows.jsonl: row 0", "data.val_files: rows.jsonl: row 0"] == [
        text.partition(": ground_truth")[0] for text in found["refused"]
    ]
    assert {"refused": [], "noted": []} == inspect("toolrl/quickstart", rows(BROKEN), rows=False)
    assert {"refused": [], "noted": []} == inspect("toolrl/quickstart", rows(GOOD), rows=True)


def test_a_reward_of_the_user_that_raises_is_noted_and_not_judged(
    tmp_path: Path, rows: Callable[[str], list[str]]
) -> None:
    (tmp_path / "theirs.py").write_text("def score(response, ground_truth, **_):\n    raise KeyError(response)\n")
    overrides = [
        *rows(GOOD),
        "~reward.reward_kwargs.mode",
        f"+reward.reward_kwargs.reward='{tmp_path}/theirs.py:score'",
    ]
    found = inspect("toolrl/quickstart", overrides, rows=True)
    assert found["refused"] == []
    assert "data.train_files: its first row could not be scored: KeyError" in found["noted"][0]


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        pytest.param("ppo_trainer", ["actor_rollout_ref.rollout.name=vllm"], id="verl's own"),
        pytest.param("toolrl/quickstart_sft", [], id="supervised"),
        pytest.param("mine.yaml", [], id="a user's file"),
    ],
)
def test_what_is_right_is_let_pass(
    recipe: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("# @package _global_\ndefaults: [/toolrl/quickstart, _self_]\n")
    monkeypatch.chdir(tmp_path)
    assert {"refused": [], "noted": []} == inspect(recipe, overrides, rows=False)


def plan(folder: Path, overrides: list[str], *, force: bool = False) -> Plan:
    given = ["launch.memory_gb=0.001", *overrides]
    return plan_run("toolrl/quickstart", given, output=folder / "run", resume=False, force=force, dry_run=True)


def test_a_plan_is_refused_for_all_mistakes_at_once_and_force_goes_on(
    tmp_path: Path, rows: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "check_engine", lambda composed: None)  # which may be missing where this is tested
    wrong = [*rows(GOOD), "+trainer.tset_freq=3", "+trainer.toolrl.alarms={no_call: 0.5}"]
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"2 mistakes; --force starts nevertheless\n  .*tset_freq.*\n  .*alarms"):
        plan(tmp_path, wrong)
    assert "+trainer.tset_freq=3" in plan(tmp_path, wrong, force=True).command.argv
    assert not {"verl", "torch", "ray"} & (set(sys.modules) - before)


def test_the_engine_is_missed_in_a_dry_run_as_well(
    tmp_path: Path, rows: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(composed: object) -> None:
        raise ConfigError("vllm is not installed")

    monkeypatch.setattr(launcher, "check_engine", missing)
    with pytest.raises(ConfigError, match="vllm is not installed"):
        plan(tmp_path, rows(GOOD), force=True)


def test_another_verl_is_refused_whatever_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.10.0.dev0")
    with pytest.raises(ConfigError, match=r"verl 0.10.0.dev0 is installed, .* pip install 'verl>=0.9.1,<0.10'"):
        plan(tmp_path, [], force=True)


def test_a_check_that_breaks_down_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: another verl' >&2\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", os.fspath(python))
    recipe = find_recipe("toolrl/quickstart")
    assert ["the recipe was not checked: ImportError: another verl"] == check_recipe(recipe, [], compose(recipe, []))
