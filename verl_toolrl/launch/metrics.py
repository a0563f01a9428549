"""The metrics of a run, read while they grow.

verl's `file` logger writes one JSON object a step, `{"step": 3, "data": {"critic/score/mean": 1.2, ...}}`
(verl/utils/tracking.py, FileLogger). Where that file cannot be seen (the trainer runs on another node of a cluster),
the line of its `console` logger is the fallback: `step:3 - critic/score/mean:1.2` (utils/logger/aggregate_logger.py).
Validation before the first step arrives as step 0; metrics of one step may come in several objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_toolrl.launch.runs import Run

__all__ = [
    "Metrics",
    "Tail",
    "newest_step",
    "parse_console_line",
    "parse_metrics_line",
    "records_of",
    "total_steps",
    "total_steps_in",
]

Metrics = dict[str, float]

_CONSOLE = re.compile(r"(?:^|\s)step:(\d+) - (\S+:.*)$")
_TOTAL = re.compile(r"Total training steps: (\d+)|Training Progress:.*?\d+/(\d+) \[")
_NUMBER = re.compile(r"^(?:np\.\w+\()?([-+\w.]+)\)?$")


class Tail:
    """Reads what was added to a growing text file since the last look; half a line waits for its rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> Iterator[str]:
        """Yield the complete lines that are new; a carriage return ends a line too (progress bars)."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._position)
                added = file.read()
        except OSError:  # not there yet
            return
        self._position += len(added)
        *complete, self._rest = re.split(rb"\r\n|\n|\r", self._rest + added)
        for line in complete:
            yield line.decode(errors="replace")


def parse_metrics_line(line: str) -> tuple[int, Metrics] | None:
    """Read one line of verl's metrics file; None when it is not one."""
    try:
        record = json.loads(line)
        return int(record["step"]), _numbers(record["data"])
    except (ValueError, TypeError, KeyError):
        return None


def parse_console_line(line: str) -> tuple[int, Metrics] | None:
    """Read one line of verl's console logger, with or without Ray's prefix; None when it is not one."""
    match = _CONSOLE.search(line)
    if match is None:
        return None
    metrics: Metrics = {}
    for part in match[2].split(" - "):
        key, _, text = part.rpartition(":")
        number = _NUMBER.match(text.strip())
        if key and number:
            try:
                metrics[key] = float(number[1])
            except ValueError:
                continue
    return (int(match[1]), metrics) if metrics else None


def _numbers(data: dict[str, object]) -> Metrics:
    return {key: float(value) for key, value in data.items() if isinstance(value, (int, float))}


def total_steps_in(line: str) -> int | None:
    """Number of the last step, where a line of the log says it (verl/trainer/ppo/v1/trainer_base.py)."""
    match = _TOTAL.search(line)
    return int(match[1] or match[2]) if match else None


def total_steps(log: Path) -> int | None:
    """Number of the last step, out of a whole log; None before verl knows it."""
    return next((total for line in Tail(log).lines() if (total := total_steps_in(line)) is not None), None)


def records_of(run: Run) -> Iterator[tuple[int, Metrics]]:
    """Yield step and metrics of every line that the attempts of a run have logged, the first attempt first."""
    for attempt in run.attempts:
        for line in Tail(run.file("metrics.jsonl", attempt.number)).lines():
            record = parse_metrics_line(line)
            if record is not None:
                yield record


def newest_step(path: Path) -> int | None:
    """Highest step in a metrics file; None when there is none yet."""
    steps = [record[0] for line in Tail(path).lines() if (record := parse_metrics_line(line)) is not None]
    return max(steps, default=None)
