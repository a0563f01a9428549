"""Trajectories on disk: a file a step, whole groups, rotated and bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rollout.journal import JOURNAL_VERSION, Journal, read_journal
from verl_toolrl.trajectory import Step, Trajectory


def records(groups: int, members: int, text: str = "hello") -> list[dict[str, Any]]:
    trajectory = Trajectory((Step(text, span=(0, 3)),)).to_dict()
    # Members of a group are not next to each other, as in a balanced batch.
    return [
        {"group": f"g{group}", "session": member, "reward": 1.0, "trajectory": trajectory}
        for member in range(members)
        for group in range(groups)
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trajectories")
    path = journal.write(3, records(2, 2))
    assert path is not None and "step_000003.jsonl" == path.name
    found = list(read_journal(path))
    assert [("g0", 0), ("g0", 1), ("g1", 0), ("g1", 1)] == [(each["group"], each["session"]) for each in found]
    assert {(JOURNAL_VERSION, 3)} == {(each["version"], each["step"]) for each in found}
    assert (Step("hello", span=(0, 3)),) == Trajectory.from_dict(found[0]["trajectory"]).steps


def test_whole_groups_are_written_up_to_the_limit(tmp_path: Path) -> None:
    path = Journal(tmp_path, trajectories=7).write(1, records(5, 3))
    assert path is not None and 6 == len(list(read_journal(path)))
    path = Journal(tmp_path, trajectories=2).write(2, records(5, 3))
    assert path is not None and 3 == len(list(read_journal(path)))  # one group at least


def test_old_files_go_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, steps=3)
    for step in range(1, 8):
        journal.write(step, records(1, 1))
    assert [5, 6, 7] == [each["step"] for each in read_journal(tmp_path)]


def test_a_run_that_goes_on_from_an_earlier_step_replaces_the_later_ones(tmp_path: Path) -> None:
    before = Journal(tmp_path, steps=3)
    for step in range(8, 11):
        before.write(step, records(1, 1))
    after = Journal(tmp_path, steps=3)
    after.write(5, records(1, 1, text="again"))
    assert [5] == [each["step"] for each in read_journal(tmp_path)]
    after.write(6, records(1, 1))
    after.write(5, records(1, 1))  # only the first write says where the run goes on
    assert [5, 6] == [each["step"] for each in read_journal(tmp_path)]


def test_lines_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "step_000001.jsonl"
    path.write_text('{"version": 1, "step": 1}\n')
    assert [1] == [each["step"] for each in read_journal(path)]


def test_all_files_together_stay_within_their_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path, megabytes=1)
    for step in range(1, 6):
        journal.write(step, records(1, 1, text="x" * 400_000))
    assert [4, 5] == [each["step"] for each in read_journal(tmp_path)]
    journal.write(6, records(4, 1, text="x" * 400_000))  # larger than all is allowed to be
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20
    assert [6, 6] == [each["step"] for each in read_journal(tmp_path)]


def test_a_journal_of_no_steps_writes_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none", steps=0).write(1, records(1, 1)) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [{"steps": -1}, {"trajectories": 0}, {"megabytes": 0.5}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Journal(tmp_path, **options)


@pytest.mark.parametrize("line", ["{", '{"version": 99}', '{"version": 0}', "{}", "[]"])
def test_a_line_of_another_version_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "step_000001.jsonl"
    path.write_text(line)
    with pytest.raises(DatasetError, match="step_000001.jsonl:1"):
        list(read_journal(path))
