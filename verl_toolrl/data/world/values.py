"""Values from a JSON Schema, for tools that nobody wrote phrases for.

Where the schema says what is possible (enum, const, examples, ranges, formats), that is used; where it leaves a text
open, name and description of the parameter hint at what it holds. A schema that nothing drawn here satisfies (a pattern
of its own making) needs `examples`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.pools import CITIES, GOODS, TITLES, WORDS, some_date, some_email, some_name, some_phone
from verl_toolrl.data.world.pools import some_time as _time

__all__ = ["draw_arguments", "draw_value"]

_DEPTH = 4
"""Nesting below which optional parts are left out."""


def _word(draw: Random) -> str:
    return draw.choice(WORDS)


def _words(draw: Random) -> str:
    return " ".join(draw.sample(WORDS, 2))


def _code(draw: Random) -> str:
    return f"{draw.choice('ABCDEFGHKLMNPRSTUVWXYZ')}{draw.choice('ABCDEFGHKLMNPRSTUVWXYZ')}-{draw.randint(100, 999)}"


def _moment(draw: Random) -> str:
    return f"{some_date(draw)}T{_time(draw)}:00Z"


def _uuid(draw: Random) -> str:
    digits = f"{draw.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


_FORMATS: dict[str, Callable[[Random], str]] = {
    "date": some_date,
    "time": lambda draw: f"{_time(draw)}:00Z",
    "date-time": _moment,
    "email": some_email,
    "uri": lambda draw: f"https://{_word(draw)}.example.org/{_word(draw)}",
    "uuid": _uuid,
    "hostname": lambda draw: f"{_word(draw)}.example.org",
    "ipv4": lambda draw: f"192.0.2.{draw.randint(1, 254)}",
}
_HINTS: tuple[tuple[str, Callable[[Random], str]], ...] = (
    (r"yyyy-mm-dd|\bdate\b|\bday\b|birthday|deadline", some_date),
    (r"hh:mm|\btime\b", _time),
    (r"e-?mail", some_email),
    (r"phone|mobile", some_phone),
    (r"city|town|location|destination|origin|place|address", lambda draw: draw.choice(CITIES)),
    (r"url|link|website", _FORMATS["uri"]),
    (r"person|customer|author|guest|user|first name|last name|full name", some_name),
    (r"title|subject|event|topic|appointment", lambda draw: draw.choice(TITLES)),
    (r"item|product|goods|article", lambda draw: draw.choice(GOODS)),
    (r"\bids?\b|code|number|reference|key", _code),
    (r"text|message|body|note|comment|content|question|query|description", _words),
)
_ANY_TEXT = (_word, _words, _code, some_date, _time, some_email, some_name, some_phone, _moment, _uuid)
"""Tried where a pattern asks for something."""


def draw_arguments(parameters: Mapping[str, Any], draw: Random) -> dict[str, Any]:
    """Draw arguments: all that are required, each optional one with even chances.

    Args:
        parameters: JSON Schema with an object at its root, in standard words (see `toolbox.schema.checkable`).
        draw: Source of chance.
    """
    return _object(parameters, draw, parameters, 0)


def draw_value(schema: Any, draw: Random, *, name: str = "", root: Mapping[str, Any] | None = None) -> Any:
    """Draw a value that fits a schema, as far as a draw can.

    Args:
        schema: Schema of the value.
        draw: Source of chance.
        name: Name of the parameter, as a hint.
        root: Schema in which `$ref` is looked up.
    """
    return _value(schema, draw, root or {}, name, 0)


def _value(schema: Any, draw: Random, root: Mapping[str, Any], name: str, depth: int) -> Any:
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), (list, tuple)) and schema[key]:
            return draw.choice(list(schema[key]))
    if "example" in schema:
        return schema["example"]
    for key in ("anyOf", "oneOf"):
        options = [each for each in schema.get(key, ()) if _resolved(each, root).get("type") != "null"]
        if options:
            rest = {other: value for other, value in schema.items() if other not in ("anyOf", "oneOf")}
            return _value({**rest, **_resolved(draw.choice(options), root)}, draw, root, name, depth)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = draw.choice([each for each in kind if each != "null"] or ["null"])
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema, draw, root, depth + 1)
    if kind == "array":
        return _array(schema, draw, root, name, depth + 1)
    if kind == "boolean":
        return draw.random() < 0.5
    if kind in ("integer", "number"):
        return _number(schema, draw, whole=kind == "integer")
    return None if kind == "null" else _text(schema, draw, name)


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    seen = 0
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str) and seen < 16:
        target: Any = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(target, Mapping) else {}
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        seen += 1
    return schema if isinstance(schema, Mapping) else {}


def _object(schema: Mapping[str, Any], draw: Random, root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    required = schema.get("required") or ()
    return {
        key: _value(each, draw, root, key, depth)
        for key, each in (schema.get("properties") or {}).items()
        if key in required or (depth < _DEPTH and draw.random() < 0.5)
    }


def _array(schema: Mapping[str, Any], draw: Random, root: Mapping[str, Any], name: str, depth: int) -> list[Any]:
    if schema.get("prefixItems"):
        return [_value(each, draw, root, name, depth) for each in schema["prefixItems"]]
    least = max(int(schema.get("minItems", 2)), 0)
    size = draw.randint(least, max(least, min(int(schema.get("maxItems", least + 2)), least + 2)))
    size = min(size, int(schema.get("maxItems", size)))
    found: list[Any] = []
    for _ in range(20 * size):
        if len(found) == size:
            break
        value = _value(schema.get("items", {}), draw, root, name, depth)
        if value not in found:
            found.append(value)
    return found


def _number(schema: Mapping[str, Any], draw: Random, *, whole: bool) -> int | float:
    step = float(schema.get("multipleOf") or (1 if whole or draw.random() < 0.6 else 0.25))
    low, high = (
        _bound(schema, "minimum", "exclusiveMinimum", step),
        _bound(schema, "maximum", "exclusiveMaximum", -step),
    )
    if low is None:
        low = 1.0 if high is None or high > 1 else high - 100 * step
    high = low + 500 * max(step, 1) if high is None else min(high, low + 500 * max(step, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    value = round(draw.randint(first, max(first, last)) * step, 6)
    return int(value) if value == int(value) else value


def _bound(schema: Mapping[str, Any], inclusive: str, exclusive: str, step: float) -> float | None:
    found = schema.get(inclusive)
    bound = float(found) if isinstance(found, (int, float)) else None
    strict = schema.get(exclusive)
    if isinstance(strict, bool) or strict is None:
        return bound + step if strict and bound is not None else bound
    inner = float(strict) + step
    return inner if bound is None else (max(bound, inner) if step > 0 else min(bound, inner))


def _text(schema: Mapping[str, Any], draw: Random, name: str) -> str:
    pattern = schema.get("pattern")
    hint = f"{re.sub(r'[_-]', ' ', name)} {schema.get('description', '')}".lower()
    makers = [_FORMATS.get(str(schema.get("format"))), *(make for words, make in _HINTS if re.search(words, hint))]
    known = [make for make in makers if make is not None] or [_word]
    if pattern is None:
        return _fitted(known[0](draw), schema, draw)
    for make in (*known, *_ANY_TEXT, *_CODES):
        value = make(draw)
        if _matches(pattern, value):
            return value
    return known[0](draw)


def _matches(pattern: Any, text: str) -> bool:
    try:
        return re.search(str(pattern), text) is not None
    except re.error:  # a dialect that Python does not read; the schema's own check decides
        return False


def _letters(count: int) -> Callable[[Random], str]:
    return lambda draw: "".join(draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(count))


def _digits(count: int) -> Callable[[Random], str]:
    return lambda draw: "".join(draw.choice("0123456789") for _ in range(count))


_CODES = (*map(_letters, range(1, 7)), *map(_digits, range(1, 13)))
"""Also tried where a pattern asks for something: capital letters and digits of every usual length."""


def _fitted(text: str, schema: Mapping[str, Any], draw: Random) -> str:
    while len(text) < int(schema.get("minLength", 0)):
        text = f"{text} {_word(draw)}"
    return text[: int(schema["maxLength"])].strip() if "maxLength" in schema else text
