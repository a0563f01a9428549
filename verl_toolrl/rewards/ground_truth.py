"""Ground truths: from what a row holds to calls.

A ground truth is text in ToolRL's tags or in Hermes' (`<think>`, `<tool_call>`, `<response>`), a list of calls, an
OpenAI message, or the JSON text of either. Text without tags is an answer without calls. Calls quoted inside a thought
are no calls, which makes those rows usable whose thoughts mention a tag (17 of ToolRL's 400 supervised rows).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl_toolrl.errors import DatasetError
from verl_toolrl.formats import parse_response
from verl_toolrl.formats.json_text import MAX_DEPTH, too_deep
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
    """Read a ground truth; used when data is loaded and when it is scored. Texts are read once and kept.

    Args:
        ground_truth: Text, a list of calls (`name` with `parameters` or `arguments`, or OpenAI's), or an OpenAI
            message.
        where: How the message of an error names it (`train.parquet: row 17`).

    Raises:
        DatasetError: Saying where, what was found and what was wanted. A reference is never repaired.
    """
    try:
        if isinstance(ground_truth, str):
            return _read_text(ground_truth)
        return _read_object(ground_truth)
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err


@lru_cache(maxsize=16384)
def _read_text(text: str) -> GroundTruth:
    if text.lstrip().startswith(("[", "{")):
        try:
            return _read_object(json.loads(text))
        except (ValueError, RecursionError) as err:
            if isinstance(err, DatasetError):
                raise
            raise DatasetError(f"begins like JSON, and is not ({err}): {text[:80]!r}") from err
    if "<tool_call>" not in text and "<response>" not in text and "<think>" not in text:
        return GroundTruth((), text.strip() or None)
    parsed = parse_response(text, "toolrl")
    if parsed.foreign and not parsed.calls:
        parsed = parse_response(text, "hermes")
    for problem in (*parsed.unparsed, *parsed.foreign, *parsed.repaired):
        raise DatasetError(f"{problem.reason}: {text[problem.span[0] : problem.span[1]][:120]!r}")
    return GroundTruth(parsed.calls, parsed.response)


def _read_object(value: Any) -> GroundTruth:
    response = None
    if isinstance(value, Mapping) and "tool_calls" in value:
        content = value.get("content")
        response = content.strip() or None if isinstance(content, str) else None
        value = () if value["tool_calls"] is None else value["tool_calls"]
    calls = [value] if isinstance(value, Mapping) else as_list(value)
    if calls is None:
        raise DatasetError(f"must be text or a list of calls, got {type(value).__name__}")
    return GroundTruth(tuple(_call(call, f"[{index}]") for index, call in enumerate(calls)), response)


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping):
        raise DatasetError(f"{where} must be an object with name and parameters, got {type(function).__name__}")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{where} has no 'name' (keys: {', '.join(map(str, function)) or 'none'})")
    arguments = function.get("parameters", function.get("arguments"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as err:
            raise DatasetError(f"{where} ({name}): arguments are no JSON ({err})") from err
    if not isinstance(arguments, Mapping):
        raise DatasetError(f"{where} ({name}) has no object 'parameters', got {type(arguments).__name__}")
    if too_deep(dict(arguments)):
        raise DatasetError(f"{where} ({name}): arguments are nested deeper than {MAX_DEPTH}")
    return ToolCall(name, dict(arguments))
