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

from verl_toolrl.formats.base import Problem, Reading
from verl_toolrl.formats.calls import add_call
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import Value, dump
from verl_toolrl.formats.tagged import CLOSE, MARKS, OPEN, TaggedDialect
from verl_toolrl.trajectory import ToolCall

__all__ = ["ToolRLDialect"]


class ToolRLDialect(TaggedDialect):
    """Arguments stand under `parameters`; the answer to the user between `<response>` tags."""

    name = "toolrl"
    marks = re.compile(r"</?(?:think|tool_call|response)>")
    foreign_marks = ("function", "mistral", "python_tag", "react", "json", "pythonic")

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
