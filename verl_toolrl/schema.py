"""What a row of data is: verl's RL schema, as ToolRL uses it.

    {"data_source": "rlla",
     "prompt": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}],
     "ability": "tool_use",
     "reward_model": {"style": "rule", "ground_truth": "<think> ... </think>\\n<tool_call>\\n...\\n</tool_call>"},
     "extra_info": {"index": 0, "split": "train", "tools": "[{...}]"}}

`ability`, `agent_name` and the rest of `extra_info` are optional. `extra_info.tools` holds the schemas of the tools on
offer as JSON text, because Parquet cannot hold lists of differing objects. This module checks the form of a row;
`verl_toolrl.rewards.ground_truth` reads its ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import DatasetError

__all__ = ["ROLES", "row_problems", "validate_row"]

ROLES = ("system", "user", "assistant", "tool", "developer")
"""Roles a message of a prompt may have."""


def validate_row(row: Any, where: str = "row") -> None:
    """Check the form of one row.

    Args:
        row: A row as Parquet or JSON gives it; arrays of numpy count as lists.
        where: How the message of an error names the row (`train.parquet: row 17`).

    Raises:
        DatasetError: For the first problem: where, what was found, what was wanted.
    """
    for problem in row_problems(row):
        raise DatasetError(f"{where}: {problem}")


def row_problems(row: Any) -> Iterator[str]:
    """Yield every problem of the form of one row as text."""
    if not isinstance(row, Mapping):
        yield f"must be an object, got {_kind(row)}"
        return
    yield from _text_problem(row, "data_source", required=True)
    for column in ("ability", "agent_name"):
        yield from _text_problem(row, column, required=False)
    yield from _prompt_problems(row)
    yield from _reward_model_problems(row)
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, Mapping):
        yield f"extra_info must be an object, got {_kind(extra)}"


def _prompt_problems(row: Mapping[str, Any]) -> Iterator[str]:
    if "prompt" not in row:
        yield f"column 'prompt' is missing (columns: {_columns(row)})"
        return
    prompt = as_list(row["prompt"])
    if prompt is None:
        yield f"prompt must be a list of messages, got {_kind(row['prompt'])}"
        return
    if not prompt:
        yield "prompt is empty"
    for index, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            yield f"prompt[{index}] must be an object with role and content, got {_kind(message)}"
        elif message["role"] not in ROLES:
            yield f"prompt[{index}].role is {message['role']!r}, wanted one of {', '.join(ROLES)}"
        elif not isinstance(message["content"], str) and as_list(message["content"]) is None:
            yield f"prompt[{index}].content must be text or a list of parts, got {_kind(message['content'])}"


def _reward_model_problems(row: Mapping[str, Any]) -> Iterator[str]:
    reward_model = row.get("reward_model")
    if reward_model is None:
        yield f"column 'reward_model' is missing (columns: {_columns(row)})"
    elif not isinstance(reward_model, Mapping):
        yield f"reward_model must be an object with ground_truth, got {_kind(reward_model)}"
    elif reward_model.get("ground_truth") is None:
        yield f"reward_model.ground_truth is missing (keys: {_columns(reward_model)})"


def _text_problem(row: Mapping[str, Any], column: str, *, required: bool) -> Iterator[str]:
    value = row.get(column)
    if value is None:
        if required:
            yield f"column {column!r} is missing (columns: {_columns(row)})"
    elif not isinstance(value, str) or not value:
        yield f"{column} must be a text that is not empty, got {value!r}"


def as_list(value: Any) -> list[Any] | None:
    """Return a list, tuple or one-dimensional numpy array as a list; None for anything else."""
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _kind(value: Any) -> str:
    return f"{type(value).__name__} with keys {_columns(value)}" if isinstance(value, Mapping) else type(value).__name__
