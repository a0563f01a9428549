"""Two measurements of the same rows: differences with paired bootstrap intervals.

Row i has d_i = after_i - before_i. The interval of mean(d) is the percentile interval (Efron and Tibshirani 1993,
chapter 13) of mean(d*) over resamples d* of n rows drawn with replacement: a row keeps its two values together, so that
how hard it is cancels out. It tells how far the figures depend on the rows that were drawn, and nothing of how another
seed would train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verl_toolrl.errors import ConfigError
from verl_toolrl.evaluation.result import Measurement, ScoredRow
from verl_toolrl.evaluation.scores import METRICS

__all__ = ["Difference", "SetDifference", "Trajectory", "bootstrap_interval", "compare", "pick_trajectories"]

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 2_000_000  # drawn rows held in memory at once


@dataclass(frozen=True)
class Difference:
    """One figure of one set, before and after."""

    rows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    """Ends of the 95 % interval of the difference."""


@dataclass(frozen=True)
class SetDifference:
    """A set in both measurements."""

    rows: int
    """Rows that both measured."""
    left_out: int
    """Rows that only one of them measured."""
    metrics: dict[str, Difference]
    """By name; correctness is missing where no row wants a call."""


@dataclass(frozen=True)
class Trajectory:
    """One row with both responses."""

    kind: str
    """better, same or worse."""
    rows_of_kind: int
    """How many rows of all sets are of this kind."""
    before: ScoredRow
    after: ScoredRow


def bootstrap_interval(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Paired percentile interval of mean(after) - mean(before).

    Args:
        before: One value a row.
        after: The same rows in the same order.
        seed: Seed of the resampling; the same seed gives the same interval.
        resamples: Number of resamples.
        level: Share of the resampled means that the interval holds.

    Raises:
        ConfigError: If the lengths differ or there is no row.
    """
    one, two = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if one.shape != two.shape or one.size == 0:
        raise ConfigError(f"pairs are needed, got {one.size} and {two.size} values")
    differences = two - one
    generator = np.random.default_rng(seed)
    count = len(differences)
    block = max(1, _BLOCK // count)
    means = [
        differences[generator.integers(count, size=(min(block, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def compare(before: Measurement, after: Measurement, *, seed: int = 0) -> dict[str, SetDifference]:
    """Compare two measurements set by set over the rows that both have.

    Raises:
        ConfigError: If they have no row in common.
    """
    earlier = {row.key: row for row in before.rows}
    later = {row.key: row for row in after.rows}
    found = {}
    for name in after.sets:
        pairs = [(earlier[row.key], row) for row in after.rows if row.data_source == name and row.key in earlier]
        if not pairs:
            continue
        only = sum(row.data_source == name and row.key not in earlier for row in after.rows)
        only += sum(row.data_source == name and row.key not in later for row in before.rows)
        found[name] = SetDifference(len(pairs), only, _differences(pairs, seed))
    if not found:
        raise ConfigError(f"{before.model} and {after.model} were measured on different rows: none is in both")
    return found


def _differences(pairs: Sequence[tuple[ScoredRow, ScoredRow]], seed: int) -> dict[str, Difference]:
    metrics = {}
    for name in METRICS:
        values = [(getattr(one.score, name), getattr(two.score, name)) for one, two in pairs]
        known = [(float(one), float(two)) for one, two in values if one is not None and two is not None]
        if known:
            one, two = (np.array(column) for column in zip(*known))
            low, high = bootstrap_interval(one, two, seed=seed)
            difference = float((two - one).mean())
            metrics[name] = Difference(len(known), float(one.mean()), float(two.mean()), difference, low, high)
    return metrics


def pick_trajectories(before: Measurement, after: Measurement) -> list[Trajectory]:
    """Take one row that got better, one that stayed as it was, and one that got worse, where there is one.

    Within a kind it is the first in the order of the rows, so that nobody chose it; rows that turned right or wrong
    come before those whose response changed otherwise, and these before those where it is the same.
    """
    earlier = {row.key: row for row in before.rows}
    pairs = [(earlier[row.key], row) for row in after.rows if row.key in earlier]
    kinds: dict[str, list[tuple[ScoredRow, ScoredRow]]] = {"better": [], "same": [], "worse": []}
    for one, two in pairs:
        gain = _total(two) - _total(one)
        kinds["better" if gain > 0 else "worse" if gain < 0 else "same"].append((one, two))
    picked = []
    for kind, rows in kinds.items():
        if rows:
            one, two = min(rows, key=lambda pair: -_change(*pair))
            picked.append(Trajectory(kind, len(rows), one, two))
    return picked


def _total(row: ScoredRow) -> float:
    """Order of outcomes: exactness first, then correctness, then format."""
    return 100 * row.score.acc + 10 * (row.score.correctness or 0.0) + row.score.format


def _change(one: ScoredRow, two: ScoredRow) -> int:
    return 2 if one.score.acc != two.score.acc else int(one.response != two.response)
