"""Measurements and their differences on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from verl_toolrl.evaluation.paired import Difference, SetDifference, Trajectory
from verl_toolrl.evaluation.result import Measurement
from verl_toolrl.evaluation.scores import METRICS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["difference_table", "score_table", "show_value", "trajectory_table"]


def show_value(metric: str, value: float | None, *, sign: bool = False) -> str:
    """Shares as per cent, correctness as it is: `62.5 %`, `+1.20`."""
    if value is None:
        return ""
    if metric == "correctness":
        return f"{value:+.2f}"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f} %"


def score_table(measurement: Measurement) -> Table:
    """Means of one measurement, a line a set."""
    from rich import box
    from rich.table import Table

    state = "" if measurement.complete else " (incomplete)"
    table = Table(title=f"{measurement.model}{state}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("set", "rows", "with calls", *METRICS, "cut"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, score in measurement.sets.items():
        cut = sum(row.finish == "length" for row in measurement.rows if row.data_source == name)
        figures = [show_value(metric, getattr(score, metric)) for metric in METRICS]
        table.add_row(name, str(score.rows), str(score.rows_with_calls), *figures, str(cut))
    return table


def difference_table(
    sets: Mapping[str, SetDifference], *, title: str, before: str = "before", after: str = "after"
) -> Table:
    """Both means and the difference with its interval, a line a figure of a set."""
    from rich import box
    from rich.table import Table

    caption = "in brackets the 95 % paired bootstrap interval of the difference"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.show_edge = False
    for column in ("", before, after, "difference (95 %)"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, found in sets.items():
        left_out = f", {found.left_out} left out" if found.left_out else ""
        table.add_row(f"[bold]{name}[/] ({found.rows} rows{left_out})")
        for metric, difference in found.metrics.items():
            table.add_row(f"  {metric}", *_figures(metric, difference))
        table.add_section()
    return table


def _figures(metric: str, difference: Difference) -> list[str]:
    color = "green" if difference.low > 0 else "red" if difference.high < 0 else "default"
    ends = [show_value(metric, end, sign=True) for end in (difference.low, difference.high)]
    return [
        show_value(metric, difference.before),
        show_value(metric, difference.after),
        f"[{color}]{show_value(metric, difference.difference, sign=True)}[/] ({ends[0]} to {ends[1]})",
    ]


def trajectory_table(trajectories: Sequence[Trajectory], *, before: str = "before", after: str = "after") -> Table:
    """Responses side by side, each under its question and above its scores."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SQUARE, show_lines=True, expand=True)
    for column in ("row", before, after):
        table.add_column(column, ratio=1, overflow="fold")
    for trajectory in trajectories:
        question = Text.assemble(
            (f"{trajectory.kind} ({trajectory.rows_of_kind} rows)", "bold"),
            f"  {trajectory.after.data_source}\n{_asked(trajectory.after.question)}\n",
            ("wanted: ", "dim"),
            trajectory.after.ground_truth.rpartition("</think>")[2].strip(),
        )
        cells = []
        for row in (trajectory.before, trajectory.after):
            correctness = "" if row.score.correctness is None else f"correctness {row.score.correctness:+.2f}, "
            right = "right" if row.score.acc else "wrong"
            scores = f"\nformat {row.score.format:.0f}, {correctness}{right}"
            cells.append(Text.assemble(row.response, (scores, "green" if row.score.acc else "red")))
        table.add_row(question, *cells)
    return table


def _asked(text: str) -> str:
    """The last thing that the user says, without ToolRL's tags around the dialogue."""
    return text.rpartition("<user>")[2].partition("</user>")[0].strip() if "<user>" in text else text
