"""Statistics of a list of numbers."""

from __future__ import annotations

import statistics
from typing import Annotated, Literal

from pydantic import Field

from verl_toolrl.toolbox import ModelMistake, tool

_MEASURES = {
    "count": len,
    "sum": lambda values: sum(values),
    "mean": statistics.fmean,
    "median": statistics.median,
    "mode": statistics.mode,
    "min": min,
    "max": max,
    "range": lambda values: max(values) - min(values),
    "stdev": statistics.stdev,
}


@tool(domain="math", deterministic=True, isolation="inline", limits={"timeout": 1.0, "output_tokens": 128})
def summarize_numbers(
    numbers: Annotated[list[float], Field(min_length=1, max_length=1000)],
    measure: Literal["count", "sum", "mean", "median", "mode", "min", "max", "range", "stdev"],
) -> float:
    """Compute one statistic of a list of numbers.

    Args:
        numbers: The numbers, at least one.
        measure: What to compute. stdev is the sample standard deviation and needs two numbers.
    """
    if measure == "stdev" and len(numbers) < 2:
        raise ModelMistake("stdev needs at least two numbers.")
    return float(f"{_MEASURES[measure](numbers):.12g}")  # type: ignore[operator]
