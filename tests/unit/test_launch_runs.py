"""Run folders: taken once, resumed on request, never overwritten."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from pathlib import Path

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import find_recipe
from verl_toolrl.launch.runs import (
    Run,
    claim,
    default_output,
    identity,
    last_checkpoint,
    load_run,
    new_run,
    resumed_run,
)
from verl_toolrl.launch.stop import find_runs, stop_run


def take(folder: Path, recipe: str = "toolrl/quickstart"):  # noqa: ANN201
    run = new_run(folder, recipe, ["a=1"])
    claim(run)
    return run


def test_a_marker_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = take(tmp_path / "out")
    run.attempt.keeper = identity(os.getpid())
    run.save()
    assert run == load_run(tmp_path / "out")
    assert ["run.json", "train.log"] == sorted(os.listdir(tmp_path / "out"))


def test_describing_a_run_writes_nothing(tmp_path: Path) -> None:
    new_run(tmp_path / "out", "toolrl/quickstart", [])
    assert [] == list(tmp_path.iterdir())


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    first = take(tmp_path / "out")
    before = (tmp_path / "out" / "run.json").read_text()
    with pytest.raises(ConfigError, match=f"output of run {first.id} of toolrl/quickstart .*--resume"):
        new_run(tmp_path / "out", "toolrl/quickstart", [])
    assert before == (tmp_path / "out" / "run.json").read_text()


def test_of_two_starts_into_one_folder_one_is_refused(tmp_path: Path) -> None:
    one, two = (new_run(tmp_path / "out", "toolrl/quickstart", []) for _ in range(2))
    claim(one)
    with pytest.raises(ConfigError, match="taken by another run"):
        claim(two)
    loaded = load_run(tmp_path / "out")
    assert loaded is not None
    assert one.id == loaded.id


def test_of_two_resumes_at_once_one_is_refused(tmp_path: Path) -> None:
    take(tmp_path / "out")
    one, two = (resumed_run(tmp_path / "out", "toolrl/quickstart", []) for _ in range(2))
    claim(one)
    with pytest.raises(ConfigError, match="taken by another run"):
        claim(two)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not a run of verl-toolrl"):
        new_run(tmp_path, "toolrl/quickstart", [])
    with pytest.raises(ConfigError, match="is not a run of verl-toolrl"):
        new_run(tmp_path / "thesis.tex", "toolrl/quickstart", [])


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert take(tmp_path).attempt.state == "starting"


def test_a_resumed_run_keeps_the_files_of_the_first_attempt(tmp_path: Path) -> None:
    first = take(tmp_path / "out")
    again = resumed_run(tmp_path / "out", "toolrl/quickstart", ["a=2"])
    claim(again)
    assert (first.id, 2, ["a=2"]) == (again.id, again.attempt.number, again.attempt.overrides)
    assert [tmp_path / "out" / "train.log", tmp_path / "out" / "train.2.log"] == [
        first.file("train.log"),
        again.file("train.log"),
    ]
    assert again.file("metrics.jsonl", 1).name == "metrics.jsonl"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("toolrl/other", "is a run of toolrl/quickstart, not of toolrl/other"), ("toolrl/quickstart", "is still going")],
)
def test_a_resume_that_makes_no_sense_is_refused(tmp_path: Path, recipe: str, message: str) -> None:
    run = take(tmp_path / "out")
    run.attempt.keeper = identity(os.getpid())
    run.save()
    with pytest.raises(ConfigError, match=message):
        resumed_run(tmp_path / "out", recipe, [])


def test_a_recycled_process_id_is_not_taken_for_the_run(tmp_path: Path) -> None:
    run = take(tmp_path / "out")
    run.attempt.keeper = identity(os.getpid()) | {"start": 1}
    assert not run.is_alive()


def elsewhere(folder: Path, *, state: str = "running", host: str = "node7") -> Run:
    """A run that a machine of another name and boot has begun."""
    run = take(folder)
    run.host, run.boot, run.attempt.state = host, "another boot", state
    run.attempt.keeper = identity(os.getpid())
    run.save()
    return run


def test_a_run_that_may_be_going_on_another_host_is_neither_resumed_nor_stopped(tmp_path: Path) -> None:
    run = elsewhere(tmp_path / "out")
    before = (tmp_path / "out" / "run.json").read_text()
    message = "was started on node7, where it may still run: stop it there; if node7 is gone, .*--force`? goes on"
    with pytest.raises(ConfigError, match=message):
        resumed_run(tmp_path / "out", run.recipe, [])
    with pytest.raises(ConfigError, match=message):
        find_runs(str(tmp_path / "out"), everything=False)
    with pytest.raises(ConfigError, match=message):
        stop_run(run.id, str(tmp_path / "out"))
    assert before == (tmp_path / "out" / "run.json").read_text()


def test_a_run_of_a_host_that_is_gone_goes_on_where_that_is_asked_for(tmp_path: Path) -> None:
    run = elsewhere(tmp_path / "out")
    again = resumed_run(tmp_path / "out", run.recipe, [], if_gone=None)
    assert (2, socket.gethostname()) == (again.attempt.number, again.host)
    stop_run(run.id, str(tmp_path / "out"), force=True)
    loaded = load_run(tmp_path / "out")
    assert loaded is not None
    assert "interrupted" == loaded.attempt.state


@pytest.mark.parametrize(
    ("state", "host"),
    [
        pytest.param("running", socket.gethostname(), id="this machine was rebooted"),
        pytest.param("finished", "node7", id="the other host has finished"),
        pytest.param("running", "", id="a marker without a host"),
    ],
)
def test_a_run_that_is_certainly_over_is_resumed(state: str, host: str, tmp_path: Path) -> None:
    run = elsewhere(tmp_path / "out", state=state, host=host)
    assert 2 == resumed_run(tmp_path / "out", run.recipe, []).attempt.number


def test_a_machine_that_was_renamed_knows_its_run(tmp_path: Path) -> None:
    run = take(tmp_path / "out")
    run.host, run.attempt.keeper = "its old name", identity(os.getpid())
    run.save()
    assert run.is_alive()
    assert not run.is_elsewhere
    with pytest.raises(ConfigError, match="is still going"):
        resumed_run(tmp_path / "out", run.recipe, [])


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        resumed_run(tmp_path, "toolrl/quickstart", [])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"id": "x"}', '{"attempts": []}', '{"attempts": [{"colour": 1}]}']
)
def test_a_broken_marker_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match="not a marker"):
        load_run(tmp_path)


def test_a_marker_is_for_people_too(tmp_path: Path) -> None:
    take(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "toolrl/quickstart" == content["recipe"]
    assert ["a=1"] == content["attempts"][0]["overrides"]


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="needs verl beside us")
def test_a_default_folder_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_output("toolrl/quickstart")
    assert Path("outputs/toolrl/quickstart") == first.parent
    first.mkdir(parents=True)
    assert not default_output("toolrl/quickstart").exists()
    (tmp_path / "mine.yaml").touch()
    assert Path("outputs/mine") == default_output(find_recipe(str(tmp_path / "mine.yaml")).name).parent


@pytest.mark.parametrize(("text", "expected"), [("12", 12), ("", None), (None, None)])
def test_the_last_checkpoint_is_what_verl_wrote_down(tmp_path: Path, text: str | None, expected: int | None) -> None:
    if text is not None:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    assert expected == last_checkpoint(tmp_path)
