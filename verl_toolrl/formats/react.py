"""ReAct (Yao et al. 2022, arXiv:2210.03629), in the words of ToolBench and StepTool.

    Thought: I need the weather.
    Action: get_weather
    Action Input: {"city": "Paris"}

or, without a call, `Final Answer: …`. Several pairs of Action and Action Input are read in order. What a model writes
behind `Observation:` is its own invention, since tools answer there: it is left over, and calls in it are no calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.calls import add_call
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import MAX_ITEMS, JsonReader, Value, dump, open_brackets
from verl_toolrl.formats.thoughts import skip_thought
from verl_toolrl.trajectory import ToolCall

__all__ = ["ReActDialect"]

_MARK = re.compile(r"^[ \t]*(Thought|Action|Action Input|Observation|Final Answer):[ \t]*", re.MULTILINE)


class ReActDialect(Dialect):
    """One `Action` with its `Action Input` a call."""

    name = "react"
    foreign_marks = ("tool_call", "function", "mistral", "python_tag", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading, json_reader = Reading(), JsonReader()
        position = skip_thought(text, reading, in_thought)
        action: tuple[int, str] | None = None
        mark = _MARK.search(text, position)
        self._said(text, position, mark.start() if mark else len(text), reading)
        while mark:
            if len(reading.calls) + len(reading.unparsed) + len(reading.thoughts) >= MAX_ITEMS:
                reading.unparsed.append(Problem((mark.start(), len(text)), f"more than {MAX_ITEMS} parts"))
                break
            kind, begin, start = mark.group(1), mark.start(), mark.end()
            if action and kind != "Action Input":
                reading.unparsed.append(Problem((action[0], begin), "Action without Action Input"))
                action = None
            if kind == "Action Input" and action:
                start = self._input(text, action[0], action[1], start, reading, json_reader)
            following = _MARK.search(text, start)
            end = following.start() if following else len(text)
            if kind == "Observation":
                reading.leftover.append(Problem((begin, len(text)), "an Observation that no tool wrote"))
                break
            if kind == "Thought":
                reading.thoughts.append(text[start:end])
            elif kind == "Final Answer":
                reading.said.append(text[start:])
                reading.foreign.extend(foreign_calls(text, start, len(text), self.foreign_marks))
                break
            elif kind == "Action":
                action = (begin, text[start:end].strip())
            elif action:
                if text[start:end].strip():
                    reading.leftover.append(Problem((start, end), "text behind the Action Input"))
                action = None
            else:
                reading.unparsed.append(Problem((begin, end), "Action Input without Action"))
            mark = following
        else:
            if action:
                reading.unparsed.append(Problem((action[0], len(text)), "Action without Action Input"))
        return reading.finish()

    def _said(self, text: str, start: int, end: int, reading: Reading) -> None:
        reading.said.append(text[start:end])
        reading.foreign.extend(foreign_calls(text, start, end, self.foreign_marks))

    def _input(self, text: str, begin: int, name: str, start: int, reading: Reading, json_reader: JsonReader) -> int:
        """Read the arguments of one action; return the offset behind them."""
        following = _MARK.search(text, start)
        end = following.start() if following else len(text)
        values, stop, reason = json_reader.first(text, start, end)
        if not values:
            stop = end
            # Nothing closes an input: with open brackets it was cut off.
            if text.startswith(("{", "```"), start) and open_brackets(text[start:stop]) <= 0:
                values = (json_reader.repair(text, start, stop) or [])[:1]
        if not values or not isinstance(values[0].value, dict):
            reading.unparsed.append(Problem((begin, stop), reason or "Action Input must be an object"))
            return stop
        value = {"name": name, "arguments": values[0].value}
        add_call(reading, Value(value, begin, stop, values[0].repair), ("arguments",))
        return stop

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`."""
        lines = []
        for kind, words in (("Thought", thought), ("Final Answer", response)):
            if words is not None and (_MARK.search(words) or "</think>" in words or "<think>" in words):
                raise self.refuse(f"a {kind} with marks in it:", words)
        if thought is not None:
            lines.append(f"Thought: {thought}")
        for call in calls:
            inexpressible = any(mark in call.name for mark in ("<think>", "</think>", "\n"))
            if inexpressible or not call.name or call.name != call.name.strip():
                raise self.refuse("a tool name with line breaks, outer spaces or tags:", call.name)
            lines += [f"Action: {call.name}", f"Action Input: {dump(dict(call.arguments), ('<think>', '</think>'))}"]
        if response is not None:
            lines.append(f"Final Answer: {response}")
        return "\n".join(lines)
