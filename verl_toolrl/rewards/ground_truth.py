"""Ground truths: from what a row holds to calls.

A ground truth is ToolRL's text (`<think>…</think>`, then `<tool_call>` with one JSON object a line, `<response>`, or
both), or a list of calls. It is read once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl_toolrl.errors import DatasetError
from verl_toolrl.schema import as_list
from verl_toolrl.trajectory import ToolCall

__all__ = ["GroundTruth", "parse_ground_truth"]


@dataclass(frozen=True)
class GroundTruth:
    """What a row wants of the model."""

    calls: tuple[ToolCall, ...]
    """Reference calls in order; empty where the model should answer without a tool."""
    response: str | None = None
    """Reference answer to the user, where there is one."""


def parse_ground_truth(ground_truth: Any, where: str = "ground_truth") -> GroundTruth:
    """Read a ground truth; used when data is loaded and when it is scored.

    Args:
        ground_truth: ToolRL's text, or a list of calls (`name` with `parameters` or `arguments`).
        where: How the message of an error names it (`train.parquet: row 17`).

    Raises:
        DatasetError: Saying where, what was found and what was wanted.
    """
    try:
        if isinstance(ground_truth, str):
            return _read_text(ground_truth)
        calls = as_list(ground_truth)
        if calls is None:
            raise DatasetError(f"must be text or a list of calls, got {type(ground_truth).__name__}")
        return GroundTruth(tuple(_call(call, f"[{index}]") for index, call in enumerate(calls)))
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err


@lru_cache(maxsize=16384)
def _read_text(text: str) -> GroundTruth:
    body = text.rpartition("</think>")[2]
    start = body.find("<tool_call>")
    response = body.partition("<response>")[2].partition("</response>")[0].strip() if "<response>" in body else None
    if start < 0:
        return GroundTruth((), response)
    block = body[start + len("<tool_call>") :].partition("</tool_call>")[0].strip()
    calls = []
    for number, line in enumerate(block.split("\n"), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DatasetError(f"line {number} of <tool_call> is not JSON ({err}): {line[:80]!r}") from err
        calls.append(_call(value, f"call {number}"))
    return GroundTruth(tuple(calls), response)


def _call(value: Any, where: str) -> ToolCall:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where} must be an object with name and parameters, got {type(value).__name__}")
    if not isinstance(value.get("name"), str) or not value["name"]:
        raise DatasetError(f"{where} has no 'name' (keys: {', '.join(map(str, value)) or 'none'})")
    arguments = value.get("parameters", value.get("arguments"))
    if not isinstance(arguments, Mapping):
        raise DatasetError(f"{where} ({value['name']}) has no object 'parameters', got {type(arguments).__name__}")
    return ToolCall(value["name"], arguments)
