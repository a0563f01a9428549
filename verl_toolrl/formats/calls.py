"""From a JSON object to a call, as all JSON dialects need it."""

from __future__ import annotations

from typing import Any

from verl_toolrl.formats.base import Problem, Reading
from verl_toolrl.formats.json_text import JsonReader, Value
from verl_toolrl.trajectory import ToolCall

__all__ = ["add_call"]

_HARMLESS = {"name", "id", "type", "index"}


def add_call(reading: Reading, value: Value, keys: tuple[str, ...], foreign: tuple[str, ...] = ()) -> None:
    """Add the call that a JSON object spells, or the reason why it spells none.

    Args:
        reading: Where to add it.
        value: The decoded object.
        keys: Keys under which this dialect writes arguments, the usual one first.
        foreign: Keys under which other dialects write them.
    """
    span, item = (value.start, value.end), value.value
    if not isinstance(item, dict):
        reading.unparsed.append(Problem(span, f"a call must be an object, got {type(item).__name__}"))
        return
    name = item.get("name")
    if not isinstance(name, str) or not name:
        reading.unparsed.append(Problem(span, f"no 'name' (keys: {', '.join(map(str, item))[:80] or 'none'})"))
        return
    key = next((key for key in keys if key in item), None)
    other = next((key for key in foreign if key in item), None)
    if key is None and other is not None:
        reading.foreign.append(Problem(span, f"arguments under {other!r} instead of {keys[0]!r}"))
        return
    arguments, repair = _arguments(item.get(key) if key else None)
    if arguments is None:
        reading.unparsed.append(Problem(span, f"{key!r} must be an object, got {type(item[key]).__name__}"))
        return
    extra = [str(other) for other in item if other not in _HARMLESS and other != key]
    for reason in (value.repair, repair, f"extra keys {', '.join(extra)[:80]}" if extra else None):
        if reason:
            reading.repaired.append(Problem(span, reason))
    identifier = item.get("id")
    reading.calls.append(ToolCall(name, arguments, identifier if isinstance(identifier, str) else None, span))


def _arguments(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return the arguments and what was repaired; None for what a person could not read as arguments either."""
    if isinstance(value, dict):
        return value, None
    if value is None:
        return {}, "no arguments given"
    if isinstance(value, str):
        values, _, reason = JsonReader().exact(value, 0, len(value))
        if reason is None and len(values) == 1 and isinstance(values[0].value, dict):
            return values[0].value, "arguments written as a string"
    return None, None
