"""Calls against ground truth: when two values are equal, what a pair of calls is worth, and the best pairing.

Two ways to compare values:

- `typed` is equality of JSON: numbers by value (5 equals 5.0), true is no number, text exactly, lists in order, NaN
  equals itself.
- `python` is the `==` of Python, as the released ToolRL scorer has it: true equals 1, NaN equals nothing.

With schemas, both sides can be normalised first (`normalise_call`): `"5"` for an integer, a default spelled out.
A pair may be worth `S(a, b) = base + |keys in both| / |keys in either| + number of equal values`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from verl_toolrl.trajectory import ToolCall

__all__ = [
    "FrozenCall",
    "best_pairing",
    "freeze",
    "freeze_arguments",
    "freeze_call",
    "key_overlap",
    "normalise_call",
    "wrong_types",
]


class FrozenCall(NamedTuple):
    """A call in a form that compares and hashes under one comparison policy."""

    name: str
    keys: frozenset[str]
    items: frozenset[tuple[str, Hashable]]
    """Pairs of argument and value; two calls are equal if name and items are."""


def freeze_call(call: ToolCall, *, typed: bool = True) -> FrozenCall:
    """Return the call with its values in comparable form."""
    return freeze_arguments(call.name, call.arguments, typed=typed)


def freeze_arguments(name: str, arguments: Mapping[str, Any], *, typed: bool = True) -> FrozenCall:
    """Return a call given by name and arguments with its values in comparable form."""
    items = frozenset(
        [(key, value if type(value) in _PLAIN else freeze(value, typed=typed)) for key, value in arguments.items()]
    )
    return FrozenCall(name, frozenset(arguments), items)


_PLAIN = frozenset({str, int, type(None)})
"""Types whose values compare under every policy as they are."""


def freeze(value: Any, *, typed: bool = True) -> Hashable:
    """Turn a JSON value into one that hashes, so that equal values under the policy are equal and others are not."""
    kind = type(value)
    if kind is str:
        return value
    if kind is bool:
        return (kind, value) if typed else value
    if kind is float and value != value:
        # Equal to itself if typed, to nothing otherwise.
        return (kind, "nan") if typed else object()
    if kind is list or kind is tuple:
        return (list, *[_inner(item, typed) for item in value])
    if isinstance(value, Mapping):
        return (dict, frozenset([(key, _inner(item, typed)) for key, item in value.items()]))
    return value


def _inner(value: Any, typed: bool) -> Hashable:
    if not typed and type(value) is float and value != value:
        # Inside a container, Python takes the NaN of its JSON reader as equal, because it is one object.
        return (float, "nan")
    return freeze(value, typed=typed)


def key_overlap(first: FrozenCall, second: FrozenCall) -> float:
    """|keys in both| / |keys in either|; 1 if neither call has arguments."""
    shared = len(first.keys & second.keys)
    either = len(first.keys) + len(second.keys) - shared
    return shared / either if either else 1.0


def best_pairing(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the pairs (row, column) of the one-to-one pairing with the largest total.

    Args:
        weights: `(rows, columns)`, no weight below 0; empty rows allowed.

    Returns:
        min(rows, columns) pairs, sorted by row. scipy's `linear_sum_assignment` decides where there are
        more than two calls on a side.
    """
    rows, columns = len(weights), len(weights[0]) if weights else 0
    if not rows or not columns:
        return []
    if rows == 1:
        return [(0, max(range(columns), key=weights[0].__getitem__))]
    if columns == 1:
        return [(max(range(rows), key=lambda row: weights[row][0]), 0)]
    if rows == columns == 2:
        straight = weights[0][0] + weights[1][1] >= weights[0][1] + weights[1][0]
        return [(0, 0), (1, 1)] if straight else [(0, 1), (1, 0)]
    from scipy.optimize import linear_sum_assignment

    first, second = linear_sum_assignment(weights, maximize=True)
    return list(zip(first.tolist(), second.tolist(), strict=True))


_INTEGER = re.compile(r"[+-]?\d{1,300}")
_NUMBER = re.compile(r"[+-]?\d{1,300}(?:\.\d{1,300})?(?:[eE][+-]?\d{1,3})?")


def normalise_call(call: ToolCall, schema: Mapping[str, Any] | None) -> ToolCall:
    """Bring arguments into the form that the tool's schema asks for.

    Text becomes an integer, number, boolean, array or object where the schema allows no text; an integer becomes text
    where it allows nothing else; an argument that equals its default is dropped.

    Args:
        call: A call.
        schema: JSON Schema of the tool's arguments; None leaves the call as it is.
    """
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return call
    arguments = {}
    for key, value in call.arguments.items():
        rule = properties.get(key)
        if isinstance(rule, Mapping):
            value = _normalise(value, rule)
            if "default" in rule and freeze(_normalise(rule["default"], rule)) == freeze(value):
                continue
        arguments[key] = value
    return ToolCall(call.name, arguments, call.id, call.span)


def _normalise(value: Any, rule: Mapping[str, Any]) -> Any:
    kinds = _kinds(rule)
    if isinstance(value, str) and kinds and "string" not in kinds:
        return _from_text(value, kinds)
    if kinds == {"string"} and isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**300 else value
    if isinstance(value, list) and isinstance(rule.get("items"), Mapping):
        return [_normalise(item, rule["items"]) for item in value]
    if isinstance(value, dict) and isinstance(rule.get("properties"), Mapping):
        inner = rule["properties"]
        return {k: _normalise(v, inner[k]) if isinstance(inner.get(k), Mapping) else v for k, v in value.items()}
    return value


def _from_text(text: str, kinds: set[str]) -> Any:
    stripped = text.strip()
    if "integer" in kinds and _INTEGER.fullmatch(stripped):
        return int(stripped)
    if "number" in kinds and _NUMBER.fullmatch(stripped):
        return int(stripped) if _INTEGER.fullmatch(stripped) else float(stripped)
    if "boolean" in kinds and stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    if "null" in kinds and stripped.lower() in ("null", "none"):
        return None
    if kinds & {"array", "object"} and stripped[:1] in ("[", "{") and len(stripped) <= 65_536:
        try:
            value = json.loads(stripped)
        except (ValueError, RecursionError):
            return text
        return value if _fits(value, kinds) else text
    return text


def wrong_types(call: ToolCall, schema: Mapping[str, Any] | None) -> tuple[int, int]:
    """Count arguments whose type the schema does not allow, and arguments that it does not know."""
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return 0, 0
    wrong = unknown = 0
    for key, value in call.arguments.items():
        rule = properties.get(key)
        if rule is None:
            unknown += 1
        elif isinstance(rule, Mapping):
            kinds = _kinds(rule)
            wrong += bool(kinds) and not _fits(value, kinds)
    return wrong, unknown


def _kinds(rule: Mapping[str, Any]) -> set[str]:
    """Types that a schema allows at its top; empty where it does not say."""
    declared = rule.get("type")
    kinds = (
        {declared} if isinstance(declared, str) else set(map(str, declared)) if isinstance(declared, list) else set()
    )
    for key in ("anyOf", "oneOf"):
        options = rule.get(key)
        for option in options if isinstance(options, list) else ():
            inner = _kinds(option) if isinstance(option, Mapping) else set()
            if not inner:
                return set()
            kinds |= inner
    return kinds


def _fits(value: Any, kinds: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int):
        return bool(kinds & {"integer", "number"})
    if isinstance(value, float):
        return "number" in kinds or ("integer" in kinds and value.is_integer())
    if value is None:
        return "null" in kinds
    name = "string" if isinstance(value, str) else "array" if isinstance(value, (list, tuple)) else "object"
    return name in kinds
