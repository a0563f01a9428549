"""Hermes and Qwen: one `<tool_call>` block a call, arguments under `arguments`, free text around.

    <think>
    I need the weather.
    </think>

    Let me look.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Source: the chat templates of Qwen2.5 and Qwen3 and of Hermes 2 Pro. Several objects in one block are read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Reading
from verl_toolrl.formats.calls import add_call
from verl_toolrl.formats.json_text import Value, dump
from verl_toolrl.formats.tagged import CLOSE, MARKS, OPEN, TaggedDialect
from verl_toolrl.trajectory import ToolCall

__all__ = ["HermesDialect"]


class HermesDialect(TaggedDialect):
    """Arguments stand under `arguments`; text outside blocks is for the user."""

    name = "hermes"
    native_arrays = True  # as Tool-N1 trains it
    marks = re.compile(r"</?(?:think|tool_call)>")
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
        if response is not None and any(mark in response for mark in MARKS):
            raise self.refuse("a response with tags in it:", response)
        parts = [response] if response else []
        for call in calls:
            parts += [OPEN, dump({"name": call.name, "arguments": dict(call.arguments)}, MARKS), CLOSE]
        opening = f"<think>\n{thought}\n</think>\n\n" if self._thought_text(thought) else ""
        return opening + "\n".join(parts)

    def _add(self, reading: Reading, value: Value) -> None:
        add_call(reading, value, ("arguments",), ("parameters", "args"))

    def _plain(self, text: str, start: int, end: int, reading: Reading) -> None:
        reading.said.append(text[start:end])
        self._foreign(text, start, end, reading)
