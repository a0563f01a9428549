"""Schedules: one small language for anything that changes during a run.

    1.0                             constant
    step(1 @ 0, 0.5 @ 30)           1 before step 30, 0.5 from it on
    linear(2 -> 1)                  over the whole run
    linear(384 -> 640, 0 -> 105)    between two steps
    cosine(1 -> 0, 20% -> 80%)      half a cosine wave between two shares of the run

A position is a step, or a share of the run with a percent sign. Before the first position the first value holds, behind
the last one the last.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import ConfigError, nearest

__all__ = ["Schedule", "parse_schedule"]

_KINDS = ("constant", "step", "linear", "cosine")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_POINT = re.compile(rf"\s*({_NUMBER})\s*@\s*({_NUMBER})\s*(%?)\s*")
_ARROW = re.compile(rf"\s*({_NUMBER})\s*(%?)\s*->\s*({_NUMBER})\s*(%?)\s*")


@dataclass(frozen=True)
class Schedule:
    """A value for every step."""

    kind: str
    values: tuple[float, ...]
    positions: tuple[float, ...] = ()
    """Where the values hold: steps, or shares of the run from 0 to 1."""
    share: bool = False
    """Whether positions are shares of the run."""

    @property
    def is_constant(self) -> bool:
        """Whether the value never changes."""
        return len(set(self.values)) == 1

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(self.values), max(self.values)

    @property
    def end(self) -> float:
        """Value behind the last position."""
        return self.values[-1]

    def at(self, step: int, total_steps: int | None = None) -> float:
        """Return the value at a step.

        Args:
            step: Global step, 0 before training.
            total_steps: Length of the run; needed where positions are shares of it.

        Raises:
            ConfigError: If the length is missing, or the step lies outside the run.
        """
        if self.is_constant:
            return self.values[0]
        position = self._position(step, total_steps)
        if self.kind == "step":
            index = sum(position >= start for start in self.positions)
            return self.values[max(index - 1, 0)]
        (first, last), (start, end) = self.values, self.positions
        share = min(max((position - start) / (end - start), 0.0), 1.0)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return first + (last - first) * share

    def _position(self, step: int, total_steps: int | None) -> float:
        if step < 0 or (total_steps is not None and step > total_steps):
            raise ConfigError(f"step {step} lies outside the run of {total_steps} steps")
        if not self.share:
            return step
        if not total_steps:
            raise ConfigError("a schedule over the run needs its length: give total_steps, or positions in steps")
        return step / total_steps


def parse_schedule(text: Any, where: str = "schedule") -> Schedule:
    """Read a schedule.

    Args:
        text: A number, or a text in the language above.
        where: How the message of an error names it.

    Raises:
        ConfigError: Saying what was found and what was wanted.
    """
    if isinstance(text, Schedule):
        return text
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return _finite(Schedule("constant", (float(text),)), where)
    if not isinstance(text, str):
        raise ConfigError(f"{where}: wanted a number or a schedule, got {text!r}")
    if re.fullmatch(rf"\s*{_NUMBER}\s*", text):
        return _finite(Schedule("constant", (float(text),)), where)
    call = _CALL.fullmatch(text)
    if call is None:
        raise ConfigError(
            f"{where}: {text!r} is no schedule; wanted a number or {', '.join(_KINDS)} as in linear(2 -> 1)"
        )
    kind, parts = call.group(1), [part.strip() for part in call.group(2).split(",")]
    if kind not in _KINDS:
        raise ConfigError(f"{where}: unknown schedule {kind!r}{nearest(kind, _KINDS)}; known: {', '.join(_KINDS)}")
    if kind == "constant":
        return parse_schedule(parts[0] if len(parts) == 1 and "(" not in parts[0] else None, where)
    return _finite(_steps(text, parts, where) if kind == "step" else _ramp(kind, text, parts, where), where)


def _steps(text: str, parts: list[str], where: str) -> Schedule:
    points = [_POINT.fullmatch(part) for part in parts]
    found = [point for point in points if point]
    if len(found) != len(points) or len({point.group(3) for point in found}) != 1:
        raise ConfigError(f"{where}: {text!r}: wanted value @ position, all in steps or all in percent")
    share = found[0].group(3) == "%"
    positions = tuple(float(point.group(2)) / (100 if share else 1) for point in found)
    if list(positions) != sorted(set(positions)):
        raise ConfigError(f"{where}: {text!r}: positions must rise")
    return _inside(Schedule("step", tuple(float(point.group(1)) for point in found), positions, share), text, where)


def _ramp(kind: str, text: str, parts: list[str], where: str) -> Schedule:
    arrows = [_ARROW.fullmatch(part) for part in parts]
    found = [arrow for arrow in arrows if arrow]
    if len(found) != len(parts) or len(found) > 2 or found[0].group(2) or found[0].group(4):
        raise ConfigError(f"{where}: {text!r}: wanted {kind}(first -> last) or {kind}(first -> last, begin -> end)")
    values = (float(found[0].group(1)), float(found[0].group(3)))
    if len(found) == 1:
        return Schedule(kind, values, (0.0, 1.0), True)
    if found[1].group(2) != found[1].group(4):
        raise ConfigError(f"{where}: {text!r}: both positions in steps or both in percent")
    share = found[1].group(2) == "%"
    begin, end = (float(found[1].group(index)) / (100 if share else 1) for index in (1, 3))
    if begin >= end:
        raise ConfigError(f"{where}: {text!r}: the end must lie behind the begin")
    return _inside(Schedule(kind, values, (begin, end), share), text, where)


def _inside(schedule: Schedule, text: str, where: str) -> Schedule:
    if schedule.positions[0] < 0 or (schedule.share and schedule.positions[-1] > 1):
        raise ConfigError(f"{where}: {text!r}: positions must lie inside the run")
    return schedule


def _finite(schedule: Schedule, where: str) -> Schedule:
    if not all(map(math.isfinite, (*schedule.values, *schedule.positions))):
        raise ConfigError(f"{where}: values must be finite")
    return schedule
