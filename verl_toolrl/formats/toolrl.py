"""ToolRL's tags: `<think>`, then `<tool_call>` with one JSON object a line, `<response>`, or both.

    <think> I need the weather. </think>
    <tool_call>
    {"name": "get_weather", "parameters": {"city": "Paris"}}
    {"name": "get_time", "parameters": {}}
    </tool_call>
    <response> Let me look. </response>

Source: the system prompt of qiancheng0/ToolRL@8cee13e. It asks for a thought in every turn and allows several tool_call
fields. White space between the fields is free here; the released scorer wants single line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import ParsedResponse, Problem, Reading
from verl_toolrl.formats.calls import add_call
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import MAX_ITEMS, Value, decode, dump
from verl_toolrl.formats.tagged import CLOSE, MARKS, OPEN, TaggedDialect
from verl_toolrl.trajectory import ToolCall

__all__ = ["ToolRLDialect"]


class ToolRLDialect(TaggedDialect):
    """Arguments stand under `parameters`; the answer to the user between `<response>` tags."""

    name = "toolrl"
    marks = re.compile(r"</?(?:think|tool_call|response)>")
    foreign_marks = ("function", "mistral", "python_tag", "react", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        # Most responses of a trained model keep the layout: this reads them in a third of the time, to the same end.
        return (None if in_thought else _read_plain(text)) or super().read(text, tools=tools, in_thought=in_thought)

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`."""
        parts = [self._thought_text(thought).rstrip("\n")] if thought is not None else []
        if calls:
            lines = [dump({"name": call.name, "parameters": dict(call.arguments)}, MARKS) for call in calls]
            parts.append("\n".join([OPEN, *lines, CLOSE]))
        if response is not None:
            if any(mark in response for mark in MARKS):
                raise self.refuse("a response with tags in it:", response)
            parts.append(f"<response> {response} </response>")
        return "\n".join(parts)

    def _add(self, reading: Reading, value: Value) -> None:
        add_call(reading, value, ("parameters",), ("arguments", "args"))

    def _plain(self, text: str, start: int, end: int, reading: Reading) -> None:
        if text[start:end].strip():
            self._foreign(text, start, end, reading)
            reading.leftover.append(Problem((start, end), "text outside the tags"))

    def _response(self, text: str, begin: int, start: int, reading: Reading) -> int:
        end = text.find("</response>", start)
        stop = end if end >= 0 else len(text)
        reading.said.append(text[start:stop])
        reading.order.append("response")
        # Inside the answer to the user our own tags smuggle a call past the layout, as those of other dialects do.
        reading.foreign.extend(foreign_calls(text, start, stop, ("tool_call", *self.foreign_marks)))
        if end < 0:
            reading.leftover.append(Problem((begin, len(text)), "</response> is missing"))
            return len(text)
        return end + len("</response>")

    def _check_order(self, text: str, reading: Reading) -> None:
        """Ask for thoughts first, then calls, then at most one answer."""
        kinds = "".join({"thought": "T", "calls": "C", "response": "R"}.get(kind, "?") for kind in reading.order)
        if not re.fullmatch("T+C*R?", kinds):
            reason = "no <think> block first" if not kinds.startswith("T") else "fields in a wrong order"
            reading.leftover.append(Problem((0, len(text)), reason))


_CALLS = ("\n<tool_call>\n", "\n</tool_call>")
_ANSWER = ("\n<response>", "</response>")


def _read_plain(text: str) -> ParsedResponse | None:
    """Read a thought followed by one block without any other tag; None where the text is anything else."""
    if not text.startswith("<think>"):
        return None
    thought_end = text.find("</think>", 7)
    start = thought_end + 8
    if thought_end < 0:
        return None
    if text.endswith(_CALLS[1]) and text.startswith(_CALLS[0], start):
        begin, end = start + len(_CALLS[0]), len(text) - len(_CALLS[1])
        calls = _plain_calls(text, begin, end) if text.find("<", begin, end) < 0 else None
        return None if calls is None else ParsedResponse(tuple(calls), text[7:thought_end].strip())
    if text.endswith(_ANSWER[1]) and text.startswith(_ANSWER[0], start):
        answer = text[start + len(_ANSWER[0]) : -len(_ANSWER[1])]
        if not any(mark in answer for mark in ("<", "{", "[", "Action Input:")):
            return ParsedResponse((), text[7:thought_end].strip(), answer.strip() or None)
    return None


def _plain_calls(text: str, begin: int, end: int) -> list[ToolCall] | None:
    calls: list[ToolCall] = []
    body = text[begin:end]
    position = 0
    while position < len(body):
        value, stop, reason = decode(body, position)
        if reason or type(value) is not dict or len(value) != 2 or len(calls) == MAX_ITEMS:
            return None
        name, arguments = value.get("name"), value.get("parameters")
        if type(name) is not str or not name or type(arguments) is not dict:
            return None
        calls.append(ToolCall(name, arguments, None, (begin + position, begin + stop)))
        if stop < len(body) and body[stop] != "\n":
            return None
        position = stop + 1
    return calls or None
