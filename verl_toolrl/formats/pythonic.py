"""Pythonic calls, as Llama 3.2 and Llama 4 write them: a Python list of calls with keyword arguments.

    [get_weather(city='Paris'), get_time()]

Source: Meta's prompt formats. The list fills the message; `<|python_start|>` and `<|python_end|>` around it are
allowed. Values are literals (None, True and False included). Nothing is evaluated. A list that is cut off is never
repaired. Lists above 32 kB are not read, because Python's own parser takes long on hostile text.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import too_deep
from verl_toolrl.formats.thoughts import skip_space, skip_thought
from verl_toolrl.trajectory import ToolCall

__all__ = ["PythonicDialect"]

MAX_LENGTH = 32_768
_TAGS = re.compile(r"<\|python_(?:start|end|tag)\|>")
_LIKE = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_KEYWORDS = {"False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def"} | {
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda"
} | {"nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "inf", "nan"}  # fmt: skip


class PythonicDialect(Dialect):
    """Tool names and argument names are Python identifiers; other argument names go into `**{…}`."""

    name = "pythonic"
    foreign_marks = ("tool_call", "function", "mistral", "react", "json")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading = Reading()
        start = skip_thought(text, reading, in_thought)
        begin = start
        while True:
            begin = skip_space(text, begin)
            tag = _TAGS.match(text, begin)
            if not tag:
                break
            begin = tag.end()
        end = begin + len(text[begin:].rstrip().removesuffix("<|python_end|>").rstrip())
        if not _LIKE.match(text, begin, end):
            reading.said.append(text[start:])
            reading.foreign.extend(foreign_calls(text, start, len(text), self.foreign_marks))
            return reading.finish()
        calls, reason = _read_list(text, begin, end)
        reading.calls.extend(calls)
        if reason:
            reading.unparsed.append(Problem((begin, end), reason))
        return reading.finish()

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`. Calls and an answer exclude each other."""
        if thought is not None and "</think>" in thought:
            raise self.refuse("a thought with </think> in it:", thought)
        if response is not None and (calls or _LIKE.match(response.lstrip())):
            raise self.refuse("a response beside calls:" if calls else "a response like", response)
        opening = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
        if not calls:
            return opening + (response or "")
        return f"{opening}[{', '.join(map(self._call, calls))}]"

    def _call(self, call: ToolCall) -> str:
        if not _NAME.fullmatch(call.name) or set(call.name.split(".")) & _KEYWORDS:
            raise self.refuse("a tool name that is no identifier:", call.name)
        named: list[str] = []
        other: dict[str, Any] = {}
        for key, value in call.arguments.items():
            if key.isidentifier() and key.isascii() and key not in _KEYWORDS and not other:
                named.append(f"{key}={self._literal(value)}")
            else:
                other[key] = value
        if other:
            named.append(f"**{self._literal(other)}")
        return f"{call.name}({', '.join(named)})"

    def _literal(self, value: Any) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            if math.isnan(value):
                raise self.refuse("a value", value)
            return "1e999" if value > 0 else "-1e999"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{ascii(key)}: {self._literal(item)}" for key, item in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(self._literal, value)) + "]"
        return _quote(value) if isinstance(value, str) else repr(value)


def _quote(value: str) -> str:
    """Write a string so that no tag inside it is seen as one."""
    return repr(value).replace("<|", "\\x3c|").replace("<think>", "\\x3cthink>").replace("</think>", "\\x3c/think>")


def _read_list(text: str, begin: int, end: int) -> tuple[list[ToolCall], str | None]:
    """Read a list of calls; the calls and why not all could be read."""
    if end - begin > MAX_LENGTH:
        return [], f"longer than {MAX_LENGTH} characters"
    source = text[begin:end]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as err:
        return [], f"no Python list of calls ({type(err).__name__})"
    if not isinstance(tree, ast.List):
        return [], "no Python list of calls"
    offsets = _LineOffsets(source)
    calls: list[ToolCall] = []
    for item in tree.elts:
        try:
            name, arguments = _read_call(item)
        except (ValueError, RecursionError) as err:
            return calls, str(err)
        if too_deep(arguments):
            return calls, "nested too deep"
        span = (
            begin + offsets.at(item.lineno, item.col_offset),
            begin + offsets.at(item.end_lineno or item.lineno, item.end_col_offset or 0),
        )
        calls.append(ToolCall(name, arguments, None, span))
    return calls, None


class _LineOffsets:
    """Character offsets of positions that `ast` gives as line and UTF-8 byte."""

    def __init__(self, source: str) -> None:
        self._lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", source)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        text = self._lines[line - 1]
        if text.isascii():
            return self._starts[line - 1] + column
        return self._starts[line - 1] + len(text.encode("utf-8", "surrogatepass")[:column].decode("utf-8", "ignore"))


def _read_call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keyword arguments")
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("a call of something that is no name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        value = _literal(keyword.value)
        if keyword.arg is not None:
            arguments[keyword.arg] = value
        elif isinstance(value, dict):
            arguments.update(value)
        else:
            raise ValueError("** of something that is no dict")
    return ".".join([function.id, *reversed(parts)]), arguments


def _literal(node: ast.expr) -> Any:
    """Return the JSON value that a literal spells."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        pairs = ((key.value, _literal(value)) for key, value in zip(node.keys, node.values))  # type: ignore[union-attr]
        return {str(key): value for key, value in pairs}
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    raise ValueError("an argument that is no literal")
