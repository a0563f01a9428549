"""Rows of a file as questions to a model, each with a key by which two measurements find the same row again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_toolrl.data.rows import read_rows
from verl_toolrl.errors import DatasetError
from verl_toolrl.formats import write_response
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.released import released_ground_truth
from verl_toolrl.schema import as_list, validate_row

__all__ = ["Question", "read_questions"]


@dataclass(frozen=True)
class Question:
    """One row to measure."""

    key: str
    """Hash of prompt, tools and ground truth; `#2` is added to the second of two equal rows."""
    data_source: str
    """The set that the row belongs to; figures are given for each set."""
    messages: list[dict[str, Any]]
    """The prompt."""
    tools: list[Any] | None
    """Schemas for the chat template, where the row has a column `tools`."""
    ground_truth: str
    """The reference, in ToolRL's text form."""
    wanted_calls: int
    """Number of calls in the reference; 0 where the right thing is to make none."""


def read_questions(files: Sequence[Path], *, limit: int | None = None) -> list[Question]:
    """Read the rows of some files.

    Args:
        files: Parquet, JSON or JSON lines with rows of verl's RL schema.
        limit: Take this many rows of each set (`data_source`), the first ones.

    Raises:
        DatasetError: If a file cannot be read or is empty, a row has a wrong form, or its ground truth cannot be read;
            the text names file and row.
    """
    found: list[Question] = []
    seen: dict[str, int] = {}
    taken: dict[str, int] = {}
    for file in files:
        rows = read_rows(file)
        if not rows:
            raise DatasetError(f"{file}: no rows")
        for index, row in enumerate(rows):
            question = _question(row, f"{file}: row {index}")
            taken[question.data_source] = taken.get(question.data_source, 0) + 1
            if limit is not None and taken[question.data_source] > limit:
                continue
            number = seen[question.key] = seen.get(question.key, 0) + 1
            found.append(question if number == 1 else _numbered(question, number))
    return found


def _question(row: Any, where: str) -> Question:
    validate_row(row, where)
    truth = row["reward_model"]["ground_truth"]
    reference = parse_ground_truth(truth, where)
    calls = reference.calls
    if not isinstance(truth, str) or "<think>" not in truth:
        # Calls or a message as JSON, or a bare answer: written out in the tags that the released scorer reads.
        truth = write_response(calls, thought="", response=reference.response)
    try:
        released_ground_truth(truth)
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err
    # Parquet fills the keys that only some messages have with None.
    messages = [{key: value for key, value in message.items() if value is not None} for message in row["prompt"]]
    tools = _tools(row.get("tools"), where)
    identity = json.dumps([messages, tools, truth], sort_keys=True, ensure_ascii=False, default=str)
    return Question(
        key=hashlib.blake2b(identity.encode(), digest_size=8).hexdigest(),
        data_source=str(row["data_source"]),
        messages=messages,
        tools=tools,
        ground_truth=truth,
        wanted_calls=len(calls),
    )


def _tools(value: Any, where: str) -> list[Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as err:
            raise DatasetError(f"{where}: tools is not JSON ({err})") from err
    tools = as_list(value)
    if tools is None:
        raise DatasetError(f"{where}: tools must be a list of schemas, got {type(value).__name__}")
    return tools or None


def _numbered(question: Question, number: int) -> Question:
    return replace(question, key=f"{question.key}#{number}")
