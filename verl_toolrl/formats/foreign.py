"""Calls of other dialects inside plain text.

A reader of one dialect does not read the calls of another, but a reward has to see that they were written. Found are
complete calls only, so that prose may mention a tag: a closed `<tool_call>` or `<function=…>` block, `[TOOL_CALLS]` or
`<|python_tag|>` with something behind it, `Action:` followed by `Action Input:`, a JSON object with a name and
arguments, and a text that is a Python list of calls.
"""

from __future__ import annotations

import json
import re
from itertools import islice

from verl_toolrl.formats.base import Problem

__all__ = ["foreign_calls"]

_BLOCKS = {"tool_call": ("<tool_call>", "</tool_call>"), "function": ("<function=", "</function>")}
_MARKS = {
    "mistral": ("[TOOL_CALLS]", re.compile(r"\[TOOL_CALLS\](?=\s*[^\s\[])|\[TOOL_CALLS\](?=\s*\[\s*\{)")),
    "python_tag": ("<|python_tag|>", re.compile(r"<\|python_tag\|>(?=\s*[^\s<])")),
    "react": ("Action Input:", re.compile(r"^[ \t]*Action:[^\n]*\n[ \t]*Action Input:", re.MULTILINE)),
}
_OBJECT = re.compile(r'\{\s*"(?:name|arguments|parameters|type|function|id)"\s*:')
_PYTHONIC = re.compile(r"\s*\[\s*[A-Za-z_][\w.]*\([^\n]*\)\s*\]\s*\Z")
MAX_FOUND = 64
_scan = json.JSONDecoder(strict=False).scan_once  # type: ignore[attr-defined]


def foreign_calls(text: str, start: int, end: int, marks: tuple[str, ...]) -> list[Problem]:
    """Find calls of other dialects in `text[start:end]`.

    Args:
        text: The response.
        start: Begin of the plain text.
        end: End of the plain text.
        marks: Which marks are foreign: names of `_MARKS`, and `json`, `pythonic`.

    Returns:
        One entry a call or block, at most 64 of a kind, in time linear in the text.
    """
    piece = text[start:end]
    found: list[Problem] = []
    for mark in marks:
        if mark in _BLOCKS:
            spans = _closed_blocks(piece, *_BLOCKS[mark])
        elif mark in _MARKS and _MARKS[mark][0] in piece:
            spans = [match.span() for match in islice(_MARKS[mark][1].finditer(piece), MAX_FOUND)]
        else:
            continue
        found += [
            Problem((start + first, start + last), f"a call in another dialect ({mark})") for first, last in spans
        ]
    if found or ("{" not in piece and "[" not in piece):
        return found
    if "json" in marks and "{" in piece:
        found = _objects(piece, start)
    if "pythonic" in marks and "(" in piece and not found and _PYTHONIC.match(piece):
        found = [Problem((start, end), "a call in another dialect (pythonic)")]
    return found


def _closed_blocks(piece: str, opening: str, closing: str) -> list[tuple[int, int]]:
    """Return the spans of blocks; an opening tag that another one follows is not closed."""
    spans: list[tuple[int, int]] = []
    position = 0
    while len(spans) < MAX_FOUND:
        end = piece.find(closing, position)
        if end < 0:
            break
        begin = piece.rfind(opening, position, end)
        position = end + len(closing)
        if begin >= 0:
            spans.append((begin, position))
    return spans


def _objects(piece: str, offset: int) -> list[Problem]:
    found, position = [], 0
    for _ in range(MAX_FOUND):
        match = _OBJECT.search(piece, position)
        if match is None:
            break
        try:
            value, position = _scan(piece, match.start())
        except (ValueError, StopIteration, RecursionError):
            position = match.end()
            continue
        called = value.get("function") if isinstance(value.get("function"), dict) else value
        if isinstance(called.get("name"), str) and ("arguments" in called or "parameters" in called):
            span = (offset + match.start(), offset + position)
            found.append(Problem(span, "a call in another dialect (json)"))
    return found
