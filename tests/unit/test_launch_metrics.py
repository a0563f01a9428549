"""verl's metrics, read while they are written, and what is shown of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from verl_toolrl.integrations.say import SAID
from verl_toolrl.launch.metrics import Tail, parse_console_line, parse_metrics_line, total_steps_in
from verl_toolrl.launch.progress import Progress, duration, sparkline

STEP = {
    "training/global_step": 3,
    "critic/score/mean": -0.5,
    "reward/format/mean": 0.75,
    "reward/correctness/mean": -1.25,
    "timing_s/step": 20.0,
    "perf/throughput": 512.4,
}


def write_steps(path: Path, steps: list[int], **changes: float) -> None:
    with path.open("a") as file:
        for step in steps:
            data = {**STEP, "training/global_step": step, **changes}
            file.write(json.dumps({"step": step, "data": data}) + "\n")


def make_progress(folder: Path) -> Progress:
    return Progress(metrics_file=folder / "metrics.jsonl", log=folder / "train.log", title="toolrl/quickstart")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # utils/logger/aggregate_logger.py joins `key:repr(value)` with " - "; numpy 2 spells its scalars out.
        pytest.param("step:2 - a/b:1.5 - c:3", (2, {"a/b": 1.5, "c": 3.0}), id="plain"),
        pytest.param("step:2 - a/b:np.float64(-1e-05)", (2, {"a/b": -1e-05}), id="numpy scalar"),
        pytest.param("(TaskRunnerV1 pid=11) step:7 - a:1", (7, {"a": 1.0}), id="Ray's prefix"),
        pytest.param(
            "step:1 - val-core/rlla/acc/mean@1:0.25", (1, {"val-core/rlla/acc/mean@1": 0.25}), id="validation"
        ),
        pytest.param("global step:1 is next", None, id="prose"),
        pytest.param("step: 1", None, id="no metrics"),
    ],
)
def test_a_console_line_gives_step_and_metrics(line: str, expected: tuple[int, dict[str, float]] | None) -> None:
    assert expected == parse_console_line(line)


def test_a_metrics_line_keeps_numbers_only() -> None:
    line = '{"step": 4, "data": {"a": 1, "b": 0.5, "c": "text", "d": null, "e": [1]}}'
    assert (4, {"a": 1.0, "b": 0.5}) == parse_metrics_line(line)


@pytest.mark.parametrize("line", ["", "{", '{"step": 1}', "[1]", '{"step": "x", "data": {}}'])
def test_a_line_that_is_no_metrics_is_none(line: str) -> None:
    assert parse_metrics_line(line) is None


def test_a_tail_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert [] == list(tail.lines())  # the file is not there yet
    path.write_bytes("first\nhä".encode()[:-1])
    assert ["first"] == list(tail.lines())
    with path.open("ab") as file:
        file.write("ä".encode()[-1:] + b"lf\n10%\r20%\r")
    assert ["hälf", "10%", "20%"] == list(tail.lines())
    assert [] == list(tail.lines())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(TaskRunnerV1 pid=5) INFO:2026-11-21 06:02:57,273:Total training steps: 16", 16),
        ("Training Progress:   0%|          | 0/2 [00:00<?, ?it/s]", 2),
        ("step:1 - a:1", None),
    ],
)
def test_the_last_step_is_in_the_log(line: str, expected: int | None) -> None:
    assert expected == total_steps_in(line)


def test_a_step_is_one_line_with_components_pace_and_time_left(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    write_steps(progress.metrics_file, [1, 2, 3])
    progress.log.write_text("Training Progress:  10%|#         | 1/9 [00:20<03:00]\n")
    assert [1, 2, 3] == progress.poll()[0]
    # 6 steps remain, 20 s each.
    expected = "step 3/9  reward -0.500 (format 0.75, correctness -1.25)  20.0 s  512 tokens/s  2 min 00 s left"
    assert expected == progress.line(3)


def test_steps_are_reported_once(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    write_steps(progress.metrics_file, [1])
    assert [1] == progress.poll()[0]
    assert [] == progress.poll()[0]
    # The console says the same again.
    progress.log.write_text("step:1 - training/global_step:1 - critic/score/mean:9.0\n")
    assert [] == progress.poll()[0]
    assert [-0.5] == progress.series("critic/score/mean")


def test_console_lines_stand_in_for_a_metrics_file_that_cannot_be_seen(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    progress.log.write_text("(T pid=1, ip=10.0.0.2) step:1 - training/global_step:1 - critic/score/mean:0.5\n")
    assert [1] == progress.poll()[0]
    assert "reward 0.500" in progress.line(1)


def test_a_resumed_run_recalls_the_steps_before_its_checkpoint(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    write_steps(tmp_path / "earlier.jsonl", [1, 2, 3])
    write_steps(progress.metrics_file, [3], **{"critic/score/mean": 2.0})
    progress.recall(tmp_path / "earlier.jsonl", up_to=2)
    assert [3] == progress.poll()[0]
    assert [-0.5, -0.5, 2.0] == progress.series("critic/score/mean")


def test_what_this_package_says_in_the_log_is_taken_out_once(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    said = f"{SAID}data.train_files: 3 of 80 prompts are longer than 416 tokens and are left out"
    (tmp_path / "train.log").write_text(f"something of verl\n\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m {said}\n")
    progress.poll()
    assert [said.removeprefix(SAID)] == progress.take_said()
    assert [] == progress.take_said()


def test_validation_before_the_first_step_is_not_a_step(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    progress.metrics_file.write_text('{"step": 0, "data": {"val-core/rlla/acc/mean@1": 0.25}}\n')
    assert [] == progress.poll()[0]
    assert progress.validation == (0, {"val-core/rlla/acc/mean@1": 0.25})


def test_time_for_validation_counts_towards_the_pace(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    write_steps(progress.metrics_file, [1])
    write_steps(progress.metrics_file, [2], **{"timing_s/testing": 10.0})
    progress.poll()
    # 20 s a step, and 10 s of validation spread over two steps.
    assert progress.seconds_a_step == 25.0
    assert progress.seconds_left is None  # the last step is not known


def test_the_panel_shows_reward_components_and_course(tmp_path: Path) -> None:
    progress = make_progress(tmp_path)
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(progress.panel())
    assert "starting verl" in console.export_text()
    write_steps(progress.metrics_file, [1])
    write_steps(progress.metrics_file, [2], **{"critic/score/mean": 1.5, "val-core/rlla/acc/mean@1": 0.25})
    progress.poll()
    console.print(progress.panel())
    text = console.export_text()
    for part in ("reward", "1.500", "-0.500", "correctness", "512 tokens/s", "validation at step 2", "▁█"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (7512, "2 h 05 min")],
)
def test_a_duration_is_readable(seconds: float, expected: str) -> None:
    assert expected == duration(seconds)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([2.0, 2.0, 2.0], "▁▁▁", id="constant"),
        pytest.param([0.0, 7.0, 3.5], "▁█▄", id="scaled to its own range"),
        pytest.param([math.nan, 1.0, math.inf, 2.0], "▁█", id="what is not finite is left out"),
        pytest.param([math.nan], "", id="nothing finite"),
    ],
)
def test_a_series_is_drawn(values: list[float], expected: str) -> None:
    assert expected == sparkline(values)
