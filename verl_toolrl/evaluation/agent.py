"""What a validation of trajectories says, before and after: success, calls, and which of them were wrong or needless.

verl's trainer writes a validation as one JSON line a trajectory (`trainer.validation_data_dir`, a file a step): prompt,
response, score, and whatever the reward reports. The rewards of StepTool report what is counted here:

    success         1 if the verifier takes the answer as right
    calls           calls that could be read
    wrong calls     calls that did not succeed, and pieces that look like calls and could not be read
    needless calls  calls that succeeded and whose answer was not used, or was known before
    steps           answers of the model

A trajectory lost to infrastructure has no line; it is left out on both sides and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import orjson

from verl_toolrl.errors import DatasetError
from verl_toolrl.evaluation.paired import Difference, SetDifference, bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FIGURES", "AgentScore", "compare_trajectories", "figures_table", "read_validation"]

FIGURES = ("success", "calls", "wrong calls", "needless calls", "steps")
"""Names of the figures, in the order in which they are shown."""
_REPORTED = tuple(
    f"seen/{name}" for name in ("is_solved", "calls", "successful_calls", "used_calls", "unparsed_calls", "steps")
)


@dataclass(frozen=True)
class AgentScore:
    """One trajectory of a validation."""

    prompt: str
    """Its prompt as verl decodes it; names the row."""
    response: str
    """Everything behind it, the tools' answers too."""
    ground_truth: Any
    figures: Mapping[str, float]
    """By name, as in `FIGURES`."""


def read_validation(path: Path) -> list[AgentScore]:
    """Read what verl wrote of one validation.

    Raises:
        DatasetError: If the file is not there, or a line lacks what the reward should report.
    """
    try:
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as err:
        raise DatasetError(f"{path}: no validation of verl ({err})") from err
    missing = [name for line in lines for name in _REPORTED if line.get(name) is None]
    if missing or not lines:
        raise DatasetError(f"{path}: the reward reports no {missing[0] if missing else 'trajectory'}; wanted: steptool")
    return [AgentScore(line["input"], line["output"], line.get("gts"), _figures(line)) for line in lines]


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    solved, calls, succeeded, used, unread, steps = (float(line[name]) for name in _REPORTED)
    return dict(zip(FIGURES, (solved, calls, calls - succeeded + unread, succeeded - used, steps)))


def compare_trajectories(before: Sequence[AgentScore], after: Sequence[AgentScore], *, seed: int = 0) -> SetDifference:
    """Compare two validations row by row, with paired bootstrap intervals (`evaluation.paired`).

    Args:
        before: One trajectory a row.
        after: The same rows; those that only one side has are left out and counted.
        seed: Seed of the resampling.

    Raises:
        DatasetError: If a prompt stands twice, or no row is in both.
    """
    earlier, later = ({score.prompt: score for score in scores} for scores in (before, after))
    if len(earlier) != len(before) or len(later) != len(after):
        raise DatasetError("a prompt stands twice in a validation, so that its trajectories cannot be paired")
    rows = sorted(earlier.keys() & later.keys())
    if not rows:
        raise DatasetError("the two validations have no row in common")
    metrics = {}
    for name in FIGURES:
        one, two = ([scores[row].figures[name] for row in rows] for scores in (earlier, later))
        low, high = bootstrap_interval(one, two, seed=seed)
        metrics[name] = Difference(len(rows), fmean(one), fmean(two), fmean(two) - fmean(one), low, high)
    return SetDifference(len(rows), len(earlier.keys() ^ later.keys()), metrics)


def figures_table(found: SetDifference, *, title: str, before: str = "before", after: str = "after") -> Table:
    """A line a figure: both means, the difference and its interval; success in per cent."""
    from rich import box
    from rich.table import Table

    # No edges: with them the intervals are cut at 80 columns.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("a trajectory", before, after, "difference", "95 % interval"):
        table.add_column(column, justify="left" if column == "a trajectory" else "right", no_wrap=True)
    for name, each in found.metrics.items():
        form = "{:.1f} %" if name == "success" else "{:.2f}"
        scale = 100 if name == "success" else 1
        signed = form.replace(":", ":+")
        better = -each.difference if name in ("wrong calls", "needless calls") else each.difference
        clear = each.low > 0 or each.high < 0
        colour = "default" if not clear or name in ("calls", "steps") else "green" if better > 0 else "red"
        ends = " to ".join(signed.format(scale * end) for end in (each.low, each.high))
        table.add_row(
            name,
            form.format(scale * each.before),
            form.format(scale * each.after),
            f"[{colour}]{signed.format(scale * each.difference)}[/]",
            ends,
        )
    return table
