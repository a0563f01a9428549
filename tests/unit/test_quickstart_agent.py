"""The quickstart over several turns around its trainers: its rows, what it counts, and what it says at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.evaluation.agent import FIGURES, compare_trajectories, figures_table, read_validation
from verl_toolrl.launch.quickstart import Quickstart
from verl_toolrl.launch.quickstart_agent import KINDS, ROWS_A_STEP, AgentQuickstart, write_rows


def line(prompt: str, *, solved: int, calls: int = 2, worked: int = 2, used: int = 2, unread: int = 0) -> str:
    """One line as verl writes it, with what the reward manager reports for StepTool."""
    seen = {"is_solved": solved, "calls": calls, "successful_calls": worked, "used_calls": used}
    seen |= {"unparsed_calls": unread, "repeated_calls": 0, "steps": calls + 1}
    reported = {f"seen/{name}": value for name, value in seen.items()}
    return json.dumps({"input": prompt, "output": "...", "gts": "24", "score": 1.0, "step": 0, **reported})


def validation(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_figures_tell_wrong_calls_from_needless_ones(tmp_path: Path) -> None:
    """Of 5 calls 4 worked and 1 was used: 1 failed and 2 could not be read (3 wrong), 3 brought nothing (needless)."""
    path = validation(tmp_path / "0.jsonl", line("a", solved=0, calls=5, worked=4, used=1, unread=2))
    (score,) = read_validation(path)
    assert {"success": 0, "calls": 5, "wrong calls": 3, "needless calls": 3, "steps": 6} == score.figures


def test_rows_are_paired_by_their_prompt_and_lost_ones_left_out(tmp_path: Path) -> None:
    before = validation(tmp_path / "0.jsonl", *(line(row, solved=row in "a") for row in "abcd"))
    after = validation(tmp_path / "9.jsonl", *(line(row, solved=row in "abc") for row in "cbae"))
    found = compare_trajectories(read_validation(before), read_validation(after))
    assert (3, 2) == (found.rows, found.left_out)
    assert (1 / 3, 1.0) == (found.metrics["success"].before, found.metrics["success"].after)
    # Two of three rows change by 1: a resample of three rows holds between none and three of them.
    assert 0.0 <= found.metrics["success"].low <= found.metrics["success"].high <= 1.0
    assert FIGURES == tuple(found.metrics)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "reports no trajectory"),
        (['{"input": "a", "output": "b", "score": 1.0}'], "reports no seen/is_solved"),
        (["{broken"], "no validation of verl"),
    ],
    ids=["empty", "another reward", "broken"],
)
def test_a_file_that_is_no_such_validation_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=message):
        read_validation(path)


def test_a_prompt_that_stands_twice_is_refused(tmp_path: Path) -> None:
    scores = read_validation(validation(tmp_path / "0.jsonl", line("a", solved=1), line("a", solved=0)))
    with pytest.raises(DatasetError, match="stands twice"):
        compare_trajectories(scores, scores)


def test_the_table_shows_every_figure_with_its_interval(tmp_path: Path) -> None:
    before = read_validation(validation(tmp_path / "0.jsonl", *(line(row, solved=0) for row in "abcd")))
    after = read_validation(validation(tmp_path / "9.jsonl", *(line(row, solved=1, used=1) for row in "abcd")))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(figures_table(compare_trajectories(before, after), title="rows"))
    text = captured.get()
    assert all(name in text for name in FIGURES)
    assert "+100.0 % to +100.0 %" in text and "+1.00 to +1.00" in text


def test_rows_are_written_for_every_stage_and_by_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_rows(tmp_path / name, seed=seed, train=16, sft=8, held_out=10)
    tables = {path.stem: pq.read_table(path) for path in (tmp_path / "a").glob("*.parquet")}
    assert {"train": 16, "sft": 8, "held_out": 10} == {name: table.num_rows for name, table in tables.items()}
    kinds = [row["extra_info"]["kind"] for row in tables["train"].to_pylist()]
    assert all(set(KINDS) == set(kinds[at : at + ROWS_A_STEP]) for at in range(0, 16, ROWS_A_STEP))
    assert tables["train"] == pq.read_table(tmp_path / "b" / "train.parquet")
    assert tables["train"] != pq.read_table(tmp_path / "c" / "train.parquet")


def test_it_ends_with_one_file_that_holds_everything_a_picture_and_what_rose(tmp_path: Path) -> None:
    run = AgentQuickstart.new(tmp_path / "run", AgentQuickstart.choose(steps=2))
    assert isinstance(run, AgentQuickstart)
    reported = ("is_solved", "calls", "successful_calls", "used_calls", "steps")
    step: dict[str, Any] = {f"reward/seen/{name}/mean": 0.5 for name in reported} | {"critic/score/mean": 0.5}
    run.state["stages"] = {
        "warm_up": {"seconds": 1.0, "metrics": {"1": {"train/loss": 1.0}}},
        "grpo": {"seconds": 2.0, "metrics": {"1": step, "2": step}},
    }
    rows = [f"row {index}" for index in range(20)]
    validation(run.measured / "0.jsonl", *(line(row, solved=0) for row in rows))
    validation(run.measured / "2.jsonl", *(line(row, solved=1) for row in rows))
    console = Console(width=90)
    with console.capture() as captured:
        run.finish(console)
    assert "finds the answer more often" in captured.get()
    state = json.loads((run.folder / "quickstart.json").read_text())
    assert 1.0 == state["differences"]["metrics"]["success"]["low"] and 20 == len(state["after"])
    assert (run.folder / "curves.png").read_bytes()[1:4] == b"PNG"


def test_the_folder_of_the_other_quickstart_is_not_resumed(tmp_path: Path) -> None:
    run = AgentQuickstart.new(tmp_path / "run", AgentQuickstart.choose())
    run.save()
    with pytest.raises(ConfigError, match="another version"):
        Quickstart.resumed(tmp_path / "run", seed=None, steps=None, fast=False)
    again = AgentQuickstart.resumed(tmp_path / "run", seed=None, steps=None, fast=False)
    assert run.settings == again.settings
