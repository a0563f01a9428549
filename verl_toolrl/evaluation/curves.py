"""A training run and what it changed, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.evaluation.paired import SetDifference

__all__ = ["draw_curves"]

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""


def draw_curves(
    path: Path,
    *,
    title: str,
    panels: Mapping[str, Mapping[str, Curve]],
    sets: Mapping[str, SetDifference],
    names: tuple[str, str],
) -> None:
    """Draw curves over steps, and under them each figure of each held-out set before and after.

    Args:
        path: The PNG to write.
        title: Over the whole picture.
        panels: Title of a panel -> name of a curve -> steps and values.
        sets: Differences by set.
        names: What the two measurements are called.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ConfigError("curves need matplotlib: pip install 'verl-toolrl[plot]'") from err

    # No pyplot: it would keep the figure and choose a window system.
    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(title)
    upper, lower = list(figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.1)).flat)
    for axes, (name, curves) in zip(_row(upper, len(panels)), panels.items()):
        _curves(axes, name, curves)
    lower.supxlabel("held-out rows, greedy; the line on a bar is the 95 % interval of the difference", fontsize="small")
    metrics = list(dict.fromkeys(metric for found in sets.values() for metric in found.metrics))
    row = _row(lower, len(metrics))
    for axes, metric in zip(row, metrics):
        _before_after(axes, metric, sets, names)
    if metrics:
        # One for the row, and outside: any corner of a panel may hold a bar.
        lower.legend(*row[0].get_legend_handles_labels(), fontsize="small", loc="outside upper right", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _row(figure: Any, count: int) -> list[Any]:
    axes = figure.subplots(1, max(count, 1), squeeze=False)
    return list(axes[0])


def _curves(axes: Any, name: str, curves: Mapping[str, Curve]) -> None:
    for label, (steps, values) in curves.items():
        axes.plot(steps, values, marker=".", label=label)
    axes.set(title=name, xlabel="step")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize="small")


def _before_after(axes: Any, metric: str, sets: Mapping[str, SetDifference], names: tuple[str, str]) -> None:
    """Bars of both means; the whisker is the interval of the difference, drawn from the first mean."""
    shown = {name: found.metrics[metric] for name, found in sets.items() if metric in found.metrics}
    scale = 1 if metric == "correctness" else 100
    for place, found in enumerate(shown.values()):
        labels = names if place == 0 else (None, None)
        before, after = scale * found.before, scale * found.after
        low, high = scale * (found.before + found.low), scale * (found.before + found.high)
        axes.bar(place - 0.2, before, 0.38, color="#9aa5b1", label=labels[0])
        axes.bar(place + 0.2, after, 0.38, color="#2b6cb0", label=labels[1])
        axes.errorbar(
            place + 0.2, after, yerr=[[max(0.0, after - low)], [max(0.0, high - after)]], color="black", capsize=4
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(shown)), [name.replace("/", "/\n") for name in shown], fontsize="small")
    axes.set(title=metric if scale == 1 else f"{metric} (%)")
    axes.grid(axis="y", alpha=0.3)
