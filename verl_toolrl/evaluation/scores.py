"""Scores of one response in ToolRL's released scorer, and their means over a set.

- `format`: 1 if the layout is that of the ground truth, else 0 (every row).
- `correctness`: in [-3, 3], for rows whose reference has calls; the released scorer gives 0 to every other row,
  whatever was written, so those do not count here.
- `acc`: 1 or 0, every row. With calls in the reference: correctness is at its maximum and no further call was written
  (the released scorer looks at the first block alone). Without: no call was written, in no dialect and not even a
  broken one. A response that says nothing makes no call either: look at `format` beside it.

A response in another dialect than ToolRL's (a model that calls tools through its chat template) is read in that dialect
and written out in ToolRL's tags first. Its `format` is 1 if it is in its dialect from end to end and calls where calls
are wanted, and only there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from verl_toolrl.evaluation.questions import Question
from verl_toolrl.formats import parse_response
from verl_toolrl.rewards.released import ReleasedReward
from verl_toolrl.trajectory import ToolCall

__all__ = ["METRICS", "RowScore", "SetScore", "mean_scores", "score_response"]

METRICS = ("format", "correctness", "acc")
"""Names of the figures, in the order in which they are shown."""

_REWARD = ReleasedReward()
_MAXIMUM = 3.0


@dataclass(frozen=True)
class RowScore:
    """What one response earned."""

    format: float
    correctness: float | None
    """None where no call is wanted."""
    acc: float
    calls: int
    """Calls that could be read out of the response."""


@dataclass(frozen=True)
class SetScore:
    """Means over a set."""

    rows: int
    rows_with_calls: int
    format: float
    correctness: float | None
    """Over the rows with calls; None if there are none."""
    acc: float


def score_response(response: str, question: Question, dialect: str = "toolrl") -> RowScore:
    """Score one response; never raises on what a model writes.

    Raises:
        UnknownNameError: If there is no such dialect.
    """
    tools = [tool for tool in question.tools or () if isinstance(tool, Mapping)]
    parsed = parse_response(response, dialect, tools=tools)
    layout: float | None = None
    if dialect != "toolrl":
        layout = float(parsed.well_formed and bool(parsed.calls) == bool(question.wanted_calls))
        response = _in_tags(parsed.calls)
    components = _REWARD(response=response, ground_truth=question.ground_truth).components
    layout = components["format"] if layout is None else layout
    written = len(parsed.calls) + len(parsed.foreign)
    if question.wanted_calls:
        correctness = components["correctness"]
        exact = correctness == _MAXIMUM and written + len(parsed.unparsed) <= question.wanted_calls
        return RowScore(layout, correctness, float(exact), len(parsed.calls))
    return RowScore(layout, None, float(written + len(parsed.unparsed) == 0), len(parsed.calls))


def _in_tags(calls: Sequence[ToolCall]) -> str:
    """Write the block of calls that the released scorer reads; no calls, no block."""
    lines = [json.dumps({"name": call.name, "parameters": dict(call.arguments)}, ensure_ascii=False) for call in calls]
    return "\n".join(["<tool_call>", *lines, "</tool_call>"]) if lines else ""


def mean_scores(scores: Sequence[RowScore]) -> SetScore:
    """Average the scores of a set that is not empty."""
    correctness = present(score.correctness for score in scores)
    return SetScore(
        rows=len(scores),
        rows_with_calls=len(correctness),
        format=fmean(score.format for score in scores),
        correctness=fmean(correctness) if correctness else None,
        acc=fmean(score.acc for score in scores),
    )


def present(values: Iterable[float | None]) -> list[float]:
    """Leave the Nones out."""
    return [value for value in values if value is not None]
