"""The quickstart around its trainers: settings, folders, rows, what it resumes, what it says at the end."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from rich.console import Console
from typer.testing import CliRunner

from verl_toolrl.cli import app, quickstart
from verl_toolrl.errors import ConfigError
from verl_toolrl.evaluation.paired import Difference, SetDifference
from verl_toolrl.launch.board import Board
from verl_toolrl.launch.quickstart import FAST, FULL, WARM_UP_ROWS, Quickstart, closing, curve
from verl_toolrl.launch.quickstart_agent import AgentQuickstart
from verl_toolrl.launch.staged import STATE


def begun(folder: Path, **choice: Any) -> Quickstart:
    """A quickstart that has written its state, as after the first stage."""
    run = Quickstart.new(folder, Quickstart.choose(**choice))
    run.save()
    return run


def test_the_full_form_measures_256_rows_with_calls_and_the_fast_one_less_of_everything() -> None:
    assert 256 == FULL.seen
    assert all(getattr(FAST, name) < getattr(FULL, name) for name in ("seen", "unseen", "no_tool", "steps"))


def test_steps_replace_those_of_either_form() -> None:
    assert (48, 4, 3) == (
        Quickstart.choose().sizes.steps,
        Quickstart.choose(fast=True).sizes.steps,
        Quickstart.choose(steps=3, fast=True).sizes.steps,
    )


@pytest.mark.parametrize("kind", [Quickstart, AgentQuickstart])
def test_the_help_names_the_steps_of_both_forms(kind: type[Quickstart]) -> None:
    command = getattr(quickstart, kind.command.replace("-", "_"))
    option = get_type_hints(command, include_extras=True)["steps"].__metadata__[0]
    assert f"Steps of GRPO; {kind.full.steps}, with --fast {kind.small.steps}." == option.help


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no quickstart"):
        Quickstart.new(tmp_path, Quickstart.choose())


def test_the_folder_of_another_quickstart_is_refused_without_resume(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match="another quickstart: add --resume"):
        Quickstart.new(tmp_path, Quickstart.choose())


def test_resume_takes_the_settings_of_the_start(tmp_path: Path) -> None:
    begun(tmp_path, seed=5, steps=3, fast=True)
    run = Quickstart.resumed(tmp_path, seed=None, steps=None, fast=False)
    assert Quickstart.choose(seed=5, steps=3, fast=True) == run.settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 2}, "--seed 5, not 2"),
        ({"steps": 9}, "--steps 48, not 9"),
        ({"fast": True}, "--fast False, not True"),
    ],
)
def test_resume_with_other_settings_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    begun(tmp_path, seed=5)
    with pytest.raises(ConfigError, match=message):
        Quickstart.resumed(tmp_path, **{"seed": None, "steps": None, "fast": False, **given})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no quickstart"),
        ("{broken", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"schema": "verl-toolrl/quickstart/0"}', "another version"),
        (json.dumps({"schema": "verl-toolrl/quickstart/1", "settings": {"seed": 1}}), "cannot be read"),
    ],
)
def test_what_cannot_be_resumed_is_said(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / STATE).write_text(content)
    with pytest.raises(ConfigError, match=message):
        Quickstart.resumed(tmp_path, seed=None, steps=None, fast=False)


def test_resume_without_output_is_refused() -> None:
    result = CliRunner().invoke(app, ["quickstart", "--resume"])
    assert isinstance(result.exception, ConfigError) and "--resume needs --output" in str(result.exception)


def test_a_folder_in_which_a_quickstart_is_going_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="still going"), run._alone():
            pass
    with run._alone():
        pass


def test_rows_are_made_for_every_stage_and_by_the_seed(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    board = Board(Console(quiet=True), "", {"data": "rows"})
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run = begun(tmp_path / name, seed=seed, fast=True)
        run._rows(board, board.lines["data"])
    tables = {path.stem: pq.read_table(path) for path in (tmp_path / "a" / "data").glob("*.parquet")}
    expected = {
        "train": 8 * (FAST.steps + 2),
        "sft": WARM_UP_ROWS * FAST.warm_up,
        "seen": FAST.seen,
        "unseen": FAST.unseen,
    }
    assert expected | {"no_tool": FAST.no_tool} == {name: table.num_rows for name, table in tables.items()}
    sources = {pq.read_table(path).column("data_source")[0].as_py() for path in run.held_out}
    assert 3 == len(sources)
    assert tables["seen"] == pq.read_table(tmp_path / "b" / "data" / "seen.parquet")
    assert tables["seen"] != pq.read_table(tmp_path / "c" / "data" / "seen.parquet")


def test_a_metric_as_a_curve_leaves_out_the_steps_that_lack_it() -> None:
    assert ([1.0, 3.0], [0.5, 0.7]) == curve({"1": {"a": 0.5}, "2": {"b": 1.0}, "3": {"a": 0.7}}, "a")


def differences(low: float) -> dict[str, SetDifference]:
    return {"seen": SetDifference(9, 0, {"acc": Difference(9, 0.1, 0.3, 0.2, low, 0.4)})}


def test_at_the_end_it_says_what_rose_and_where_the_files_are(tmp_path: Path) -> None:
    text = "\n".join(closing(begun(tmp_path), differences(0.05)))
    assert "got better in: acc" in text and str(tmp_path / "model") in text and "--fast" not in text


def test_at_the_end_it_does_not_claim_what_the_interval_leaves_open(tmp_path: Path) -> None:
    text = "\n".join(closing(begun(tmp_path), differences(-0.05)))
    assert "got better" not in text and "No figure" in text


def test_fast_says_what_it_cannot_show(tmp_path: Path) -> None:
    assert "cannot show how much the model learns" in "\n".join(closing(begun(tmp_path, fast=True), differences(0.05)))


def test_the_board_shows_what_is_done_what_failed_and_what_waits() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    board = Board(console, "title", {"a": "first", "b": "second", "c": "third"})
    with board.stage("a") as line:
        line.note = "fine"
    with pytest.raises(ValueError, match="boom"), board.stage("b"):
        raise ValueError("boom")
    assert ["done", "failed", "waiting"] == [line.state for line in board.lines.values()]
    console.print(board.table())
    text = console.export_text()
    assert "[1/3] first" in text and "fine" in text and "failed" in text and "third" in text
