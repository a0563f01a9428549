"""Calls as ToolACE writes them: `[Weather API(city="Paris", days=2), getTime()]`.

Names may hold spaces, slashes and dots, keys need not be identifiers, values are literals of Python or JSON. Nothing is
evaluated, and nothing is repaired: this reads references, not what a model wrote (`formats.pythonic` reads that).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from verl_toolrl.errors import DatasetError
from verl_toolrl.trajectory import ToolCall

__all__ = ["answer_calls", "bracket_calls"]

_NAME = re.compile(r"[\w./][\w./ -]*(?=\()")
_KEY = re.compile(r"[\s,]*([^=,()\[\]{}\"']+?)\s*=")
_EMPTY = re.compile(r"\[[\s,]*\]")
_CONSTANTS = {"true": True, "false": False, "null": None}


def answer_calls(text: str, names: Sequence[str], where: str) -> tuple[ToolCall, ...]:
    """Read the calls of an answer; none where it is a text, in brackets or not.

    Args:
        text: The whole message.
        names: Tools on offer.
        where: How the message of an error names the place.

    Raises:
        DatasetError: If a tool on offer is called inside brackets and the message as a whole is no list of calls, or
            if the list is empty: it says neither what to call nor what to answer.
    """
    if _EMPTY.fullmatch(text):
        raise DatasetError(f"{where}: {text!r}, an empty list of calls; wanted calls or a text for the user")
    if _is_bracketed(text, names):
        try:
            return bracket_calls(text, names, where)
        except DatasetError:
            # `[Note (see above): ...]` looks like a call of a tool "Note", which is none.
            if any(_called(text, name) or _stands_in_brackets(text, name) for name in names):
                raise
            return ()
    named = next((name for name in names if _stands_in_brackets(text, name)), None)
    if named is not None:
        raise DatasetError(
            f"{where}: {text[:60]!r} has {named!r} in brackets, a tool on offer; wanted [Name(key=value), ...] as the "
            "whole message, or a text without calls"
        )
    return ()


def _is_bracketed(text: str, names: Sequence[str]) -> bool:
    """Whether a message is a list of calls, by how it begins and ends."""
    return text.startswith("[") and text.endswith("]") and _name_at(text, _skip(text, 1), names) is not None


def _called(text: str, name: str) -> list[int]:
    """Return where a call of a tool begins, inside brackets or not."""
    return [match.start() for match in re.finditer(rf"(?<![\w./]){re.escape(name)}\s*\(", text)]


def _stands_in_brackets(text: str, name: str) -> bool:
    """Whether a tool is called inside brackets, or stands in a message in brackets without those of a call."""
    if any(text.count("[", 0, start) > text.count("]", 0, start) for start in _called(text, name)):
        return True
    return text.startswith("[") and text.endswith("]") and name in map(str.strip, text[1:-1].split(","))


def bracket_calls(text: str, names: Sequence[str], where: str) -> tuple[ToolCall, ...]:
    """Read a list of calls.

    Args:
        text: The whole message, from bracket to bracket.
        names: Tools on offer; a name in the text is the longest of them that fits, else what stands before the bracket.
        where: How the message of an error names the place.

    Raises:
        DatasetError: If it is anything else.
    """
    calls = []
    position, end = _skip(text, 1), len(text) - 1
    while position < end:
        name = _name_at(text, position, names)
        if name is None:
            raise DatasetError(f"{where}: {text[position : position + 60]!r}, wanted Name(key=value)")
        start = position + len(name) + 1
        stop = _find(text, start, ")")
        if stop < 0:
            raise DatasetError(f"{where}: {text[position : position + 60]!r}: the bracket is not closed")
        arguments = dict(_arguments(text[start:stop], f"{where}: {name}"))
        calls.append(ToolCall(name.strip(), arguments))
        position = _skip(text, stop + 1)
    return tuple(calls)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " ,\n":
        position += 1
    return position


def _name_at(text: str, position: int, names: Sequence[str]) -> str | None:
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(f"{name}(", position):
            return name
    match = _NAME.match(text, position)
    return match.group() if match else None


def _find(text: str, start: int, wanted: str) -> int:
    """Return where `wanted` stands first outside quotes and inner brackets; -1 if nowhere."""
    depth, quote, position = 0, "", start
    while position < len(text):
        letter = text[position]
        if quote:
            position += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif depth == 0 and letter == wanted:
            return position
        else:
            depth += (letter in "([{") - (letter in ")]}")
        position += 1
    return -1


def _arguments(text: str, where: str) -> Iterator[tuple[str, Any]]:
    position = 0
    while text[position:].strip(" ,\n"):
        match = _KEY.match(text, position)
        if match is None:
            raise DatasetError(f"{where}: {text[position : position + 60]!r}, wanted key=value")
        stop = _find(text, match.end(), ",")
        stop = len(text) if stop < 0 else stop
        value = text[match.end() : stop].strip()
        try:
            yield match.group(1).strip(), _literal(ast.parse(value, mode="eval").body)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as err:
            raise DatasetError(f"{where}: {match.group(1).strip()}={value[:60]}, wanted a literal ({err})") from err
        position = stop


def _literal(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in _CONSTANTS:
            raise ValueError(f"{node.id} without quotes")
        return _CONSTANTS[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(key)): _literal(value) for key, value in zip(node.keys, node.values)}
    value = ast.literal_eval(node) if node is not None else None
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{type(value).__name__} is no JSON")
    return value
