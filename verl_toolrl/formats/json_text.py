"""JSON as models write it: exact first, repaired only where asked, always in time linear in the text.

The exact path is the scanner of the standard library (C). It stands at an offset, so that a closing tag inside a string
is part of the string, and it keeps integers of any size. What it refuses goes to two repairs, both reported: raw line
breaks inside strings, and `json_repair` for pieces up to 16 kB, at most 16 kB and 64 pieces a response, because its
time is far from linear on hostile text. Nesting is limited to 128, well below the recursion limit, so that the answer
does not depend on how deep the caller's stack is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import json_repair

__all__ = [
    "MAX_DEPTH",
    "MAX_ITEMS",
    "MAX_REPAIR",
    "Block",
    "JsonReader",
    "Value",
    "dump",
    "flatten",
    "open_brackets",
    "too_deep",
]

MAX_DEPTH = 128
"""Deepest nesting that is read."""
MAX_REPAIR = 16_384
"""Characters that are given to the repairing reader, for one piece and for one response."""
MAX_ITEMS = 1024
"""Values of one block, tags of one response: what comes behind is reported as one unread piece."""
_NAME_KEY = re.compile(r"""["']name["']\s*:""")
_NEW_OBJECT = re.compile(r"""\{\s*["']name["']""")
_MAX_REPAIRS = 64
_MAX_REPAIR_DEPTH = 32
_MAX_WIDE_SCANS = 16
_TOO_MANY = f"more than {MAX_ITEMS} values"
_TOO_DEEP = f"nested deeper than {MAX_DEPTH}"

_SPACE = re.compile(r"[ \t\n\r]*")
# A string runs to the end where its closing quote is missing, so that every character is visited once.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)

_strict = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_lenient = json.JSONDecoder(strict=False).scan_once  # type: ignore[attr-defined]


class Value(NamedTuple):
    """One JSON value of a text."""

    value: Any
    start: int
    end: int
    repair: str | None = None
    """What was repaired; None where the text was exact."""


@dataclass(frozen=True)
class Block:
    """What stands between two tags."""

    values: list[Value]
    end: int
    """Offset behind the closing tag, or behind what belongs to a block that is not closed."""
    closed: bool = True
    problem: str | None = None
    """Why some of it could not be read."""
    problem_start: int = 0
    """Where that begins; it ends with the block."""


def open_brackets(text: str) -> int:
    """Return how many brackets and braces outside strings are still open at the end."""
    depth = 0
    for token in _TOKEN.finditer(text):
        sign = token.group()
        depth += (sign in "[{") - (sign in "]}")
    return depth


def decode(text: str, position: int) -> tuple[Any, int, str | None]:
    """Read the value at an offset: the value, the offset behind it, and why there is none."""
    try:
        value, stop = _strict(text, position)
    except StopIteration:
        return None, position, "no JSON value"
    except RecursionError:
        return None, position, _TOO_DEEP
    except ValueError as err:  # JSONDecodeError, or an integer of more digits than Python reads
        return None, position, getattr(err, "msg", None) or str(err)
    if stop - position > 2 * MAX_DEPTH and too_deep(value):
        return None, position, _TOO_DEEP
    return value, stop, None


def _scan_one(piece: str, offset: int) -> tuple[list[Value], int, str | None]:
    start = _skip_space(piece, 0)
    value, stop, reason = decode(piece, start)
    found = [] if reason else [Value(value, offset + start, offset + stop)]
    return found, offset + stop, reason


def _deepest(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        sign = token.group()
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return deepest


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _inside_fence(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the span inside a Markdown code fence that fills the piece, or None."""
    piece = text[start:end].strip()
    line, found, _ = piece.partition("\n")
    if not found or not line.startswith("```") or not piece.endswith("```") or len(piece) < len(line) + 4:
        return None
    begin = text.index("\n", text.index("```", start)) + 1
    return begin, text.rindex("```", begin, end)


def too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether lists and objects are nested deeper than `limit`."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def dump(value: Any, protect: tuple[str, ...] = ()) -> str:
    """Write a value as JSON, with the first character of each text in `protect` escaped where it occurs."""
    text = json.dumps(value, ensure_ascii=False)
    for mark in protect:
        # A mark can only stand inside a string, because its first character is no JSON syntax.
        text = text.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
    return text


class JsonReader:
    """Reads the JSON values of one response; keeps the budgets that bound its time."""

    def __init__(self) -> None:
        self._repair_left, self._repairs_left = MAX_REPAIR, _MAX_REPAIRS
        self._wide_left = _MAX_WIDE_SCANS

    def block(self, text: str, start: int, opening: str, closing: str) -> Block:
        """Read the values between `start`, which follows an opening tag, and the closing tag."""
        end = text.find(closing, start)
        if end < 0:
            return Block([], len(text), False, f"{closing} is missing", start)
        values, stop, reason = self.exact(text, start, end)
        if reason and reason.startswith("Unterminated") and self._wide_left:
            # The closing tag may stand inside a string: read on from the value that it cut.
            self._wide_left -= 1
            more, wide_stop, wide_reason = self.exact(text, stop, len(text), until=closing)
            if wide_reason is None:
                return Block(values + more, wide_stop + len(closing))
        if reason is None:
            return Block(values, end + len(closing))
        if reason in (_TOO_DEEP, _TOO_MANY):
            return Block(values, end + len(closing), True, reason, stop)
        again = text.rfind(opening, stop, end)
        if again >= 0:
            # What follows is another block, so this one was never closed, and what it holds is no call.
            return Block([], again, False, f"{closing} is missing", start)
        repaired = self.repair(text, stop, end)
        if repaired is None:
            return Block(values, end + len(closing), True, reason, stop)
        return Block(values + repaired, end + len(closing))

    def exact(self, text: str, start: int, end: int, until: str | None = None) -> tuple[list[Value], int, str | None]:
        """Read values separated by white space up to `end`, or up to the text `until` where a value could begin.

        Returns:
            The values, the offset where reading stopped, and why, or None if all was read.
        """
        piece = text[start:end]
        values: list[Value] = []
        position = _skip_space(piece, 0)
        while position < len(piece):
            if until is not None and piece.startswith(until, position):
                return values, start + position, None
            value, stop, reason = decode(piece, position)
            if reason is None and len(values) == MAX_ITEMS:
                reason = _TOO_MANY
            if reason is not None:
                return values, start + position, reason
            values.append(Value(value, start + position, start + stop))
            position = _skip_space(piece, stop)
        return values, start + position, None if until is None else f"{until} is missing"

    def first(self, text: str, start: int, end: int) -> tuple[list[Value], int, str | None]:
        """Read the one value that begins at `start`, behind white space.

        Args:
            text: The response.
            start: Where the value begins.
            end: Where the value must end unless `text[end:]` still belongs to a string of it.

        Returns:
            The value, or an empty list; the offset behind it; and why there is none.
        """
        values, stop, reason = _scan_one(text[start:end], start)
        if reason and reason.startswith("Unterminated") and self._wide_left:
            self._wide_left -= 1
            values, stop, reason = _scan_one(text[start:], start)
        return values, stop, reason

    def repair(self, text: str, start: int, end: int) -> list[Value] | None:
        """Read a piece that is no exact JSON as a careful person would; None where that gives no object.

        The caller vouches that the piece is complete: a piece that was cut off must not be made into a call.
        """
        fence = _inside_fence(text, start, end)
        if fence:
            values, stop, reason = self.exact(text, *fence)
            if reason is None and values:
                return [Value(item.value, item.start, item.end, "inside a code fence") for item in values]
        try:
            value, stop = _lenient(text[start:end], 0)
        except (ValueError, StopIteration, RecursionError):
            pass
        else:
            if not text[start + stop : end].strip() and not too_deep(value):
                return [Value(value, start, start + stop, "raw control characters in a string")]
        return self._json_repair(text, start, end)

    def _json_repair(self, text: str, start: int, end: int) -> list[Value] | None:
        piece = text[start:end]
        if len(piece) > self._repair_left or "{" not in piece:
            return None
        self._repair_left -= len(piece)
        found = []
        for first, last in _objects(piece):
            value = self._repair_object(piece[first:last])
            if value is None:
                return None
            found.append(Value(value, start + first, start + last, "not valid JSON"))
        return found or None

    def _repair_object(self, piece: str) -> dict[str, Any] | None:
        # Deep nesting makes the repairing reader slow and its recursion deep.
        if not self._repairs_left or _deepest(piece) > _MAX_REPAIR_DEPTH:
            return None
        self._repairs_left -= 1
        try:
            value = json_repair.loads(piece, skip_json_loads=True)
        except (ValueError, RecursionError, IndexError, TypeError, KeyError, AttributeError):
            return None
        if not isinstance(value, dict) or not value:
            return None
        # The repairing reader drops what it takes for repetition. No call may get lost in that.
        lost = len(_NAME_KEY.findall(piece)) > json.dumps(value).count('"name":')
        return None if lost else value


def _objects(piece: str) -> list[tuple[int, int]]:
    """Return the spans of what look like objects side by side; a line that begins `{"name"` begins a new one."""
    spans: list[tuple[int, int]] = []
    begin = depth = 0
    for token in _TOKEN.finditer(piece):
        sign, position = token.group(), token.start()
        if sign == "{":
            if depth and _NEW_OBJECT.match(piece, position) and not piece[begin:position].rpartition("\n")[2].strip():
                spans.append((begin, position))
                depth = 0
            if not depth:
                begin = position
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
            if not depth:
                spans.append((begin, token.end()))
    return [*spans, (begin, len(piece))] if depth else spans


def flatten(values: list[Value], native: bool) -> Iterator[Value]:
    """Yield objects; those of an array one by one, marked as repaired unless arrays are native to the dialect."""
    for value in values:
        if isinstance(value.value, list):
            # Behind the limit stands one item that is no call, so that the reader reports it.
            items = value.value if len(value.value) <= MAX_ITEMS else [*value.value[:MAX_ITEMS], value.value]
            for item in items:
                yield Value(item, value.start, value.end, value.repair or (None if native else "inside an array"))
        else:
            yield value
