"""Types as words, the way xLAM, Hammer and ToolRL's prompts write them, to JSON Schema.

    str                       {"type": "string"}
    int, optional             {"type": "integer"}, optional
    Optional[str]             {"type": ["string", "null"]}, optional
    Union[int, str]           {"type": ["integer", "string"]}
    List[Union[int, float]]   {"type": "array", "items": {"type": ["integer", "number"]}}
    Union[int, List[int]]     {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}

(Words: qiancheng0/ToolRL@8cee13e, dataset/rlla_4k; Salesforce/xlam-function-calling-60k.) A word that says no type of
JSON (`Any`, `Callable[[float], float]`) allows everything, and so does a union with it. The inner types of a dictionary
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["type_schema"]

_TYPES = {
    "array": ("list", "array", "tuple", "set"),
    "object": ("dict", "object"),
    "string": ("str",),
    "integer": ("int",),
    "number": ("float", "num", "double"),
    "boolean": ("bool",),
}
"""JSON Schema type -> how the words for it begin."""
_NULL = ("none", "null", "nonetype")

_SUBSCRIPT = re.compile(r"([\w.]+)\s*\[(.*)\]", re.DOTALL)
_LONGEST = 500
"""Characters of a text that is taken apart; of a longer one only the beginning counts."""


def type_schema(declared: Any) -> tuple[dict[str, Any], bool]:
    """Return the JSON Schema of a type and whether its text says that the parameter is optional.

    Args:
        declared: The words, or a list of them of which each is allowed; anything else says nothing. Of a list, `null`
            does not make the parameter optional: JSON Schema writes it, and has `required` for that.
    """
    if isinstance(declared, (list, tuple)):
        return _union(map(str, declared)), False
    if not isinstance(declared, str):
        return {}, False
    if len(declared) > _LONGEST:
        return _word(declared), False
    # `int, optional`, `int, optional, default 5`, `int (optional)`
    head, *rest = _split(declared, ",")
    kind, marked = re.subn(r"\(\s*optional\b[^()]*\)\s*$", "", head, flags=re.IGNORECASE)
    schema = _schema(kind)
    if schema == {"type": "null"}:
        schema = {}  # who writes `None` alone names no type
    said = re.match(r"(\w+\.)*optional\b", kind.strip(), re.IGNORECASE)
    noted = any(re.match(r"(optional|default)\b", part, re.IGNORECASE) for part in rest)
    return schema, bool(marked or said or noted or _allows_null(schema))


def _schema(text: str) -> dict[str, Any]:
    text = text.strip()
    either = list(_split(text, "|"))
    # `integer or string`, but `int (1 or 2)` is an integer
    words = re.split(r"\s+or\s+", text) if "[" not in text else []
    if len(either) > 1 or (len(words) > 1 and all(map(_word, words))):
        return _union(either if len(either) > 1 else words)
    match = _SUBSCRIPT.fullmatch(text)
    if match is None:
        return _word(text)
    name, inner = match.group(1).rpartition(".")[2].lower(), list(_split(match.group(2), ","))
    if name in ("optional", "union"):
        return _union([*inner, "None"] if name == "optional" else inner)
    schema = _word(name)
    items = _union(part for part in inner if part != "...") if schema.get("type") == "array" else {}
    return {**schema, "items": items} if items else schema


def _word(text: str) -> dict[str, Any]:
    text = text.strip().lower()
    if text in _NULL:
        return {"type": "null"}
    kind = next((kind for kind, words in _TYPES.items() if text.startswith(words)), None)
    return {"type": kind} if kind else {}


def _union(texts: Iterable[str]) -> dict[str, Any]:
    """Return the schema that allows what any of the texts says: a list of types where they suffice, else `anyOf`."""
    options: list[dict[str, Any]] = []
    for option in (flat for text in texts for flat in _alternatives(_schema(text))):
        if not option:
            return {}
        if option not in options:
            options.append(option)
    if len(options) < 2:
        return options[0] if options else {}
    if any(set(option) != {"type"} for option in options):
        return {"anyOf": options}
    return {"type": [option["type"] for option in options]}


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Take a union inside a union apart."""
    if "anyOf" in schema:
        return list(schema["anyOf"])
    if isinstance(schema.get("type"), list):
        return [{"type": kind} for kind in schema["type"]]
    return [schema]


def _allows_null(schema: dict[str, Any]) -> bool:
    return len(found := _alternatives(schema)) > 1 and {"type": "null"} in found


def _split(text: str, mark: str) -> Iterator[str]:
    """Yield the parts of a text between the marks outside brackets, without the space around them."""
    depth, start = 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == mark and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    yield text[start:].strip()
