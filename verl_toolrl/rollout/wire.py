"""JSON of trajectories that never fails on what a model wrote.

orjson is fast and refuses integers beyond 64 bits, lone surrogates and deep nesting, all of which a model can put into
the arguments of a call. Those are written by the standard library instead, behind a space, by which a reader knows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import orjson

__all__ = ["dumps", "loads"]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_DEPTH = 100


def dumps(value: Any) -> str:
    """Return one line of JSON: dataclasses and enums by their values, what has no JSON form as its text."""
    try:
        return orjson.dumps(value, default=_other, option=_OPTIONS).decode()
    except (TypeError, ValueError, RecursionError):
        return " " + json.dumps(_plain(value, 0))


def loads(text: str | bytes) -> Any:
    """Read what `dumps` wrote.

    Raises:
        ValueError: If it is no JSON.
    """
    slow = text[:1] in (" ", b" ")
    return json.loads(text) if slow else orjson.loads(text)


def _other(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum):
        return value
    if depth > _DEPTH:
        return "..."
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name), depth + 1) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, depth + 1) for each in value]
    return _plain(_other(value), depth + 1)
