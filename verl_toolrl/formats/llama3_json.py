"""Llama 3 JSON: the message is one object a call, with or without `<|python_tag|>` before it.

    {"name": "get_weather", "parameters": {"city": "Paris"}}

Source: Meta's prompt format of Llama 3.1 to 3.3. Several calls stand side by side, separated by white space, `;` or
`,`. Arguments under `arguments` are read as well, as all engines do. JSON without a name is an answer, not a call.
There is no closing tag: an object whose brackets are not closed was cut off, and is never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.calls import add_call
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import MAX_ITEMS, JsonReader, dump, flatten, open_brackets
from verl_toolrl.formats.thoughts import skip_thought
from verl_toolrl.trajectory import ToolCall

__all__ = ["Llama3JsonDialect"]

TAG = "<|python_tag|>"
_SEPARATOR = re.compile(r"[\s;,]*")
_CALL_LIKE = re.compile(r'[\[{][\s\[{]*"(?:name|type|id|parameters|arguments)"\s*:')
_KEYS = ("parameters", "arguments")


class Llama3JsonDialect(Dialect):
    """Arguments stand under `parameters`."""

    name = "llama3_json"
    foreign_marks = ("tool_call", "function", "mistral", "react", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading = Reading()
        start = skip_thought(text, reading, in_thought)
        tag = text.find(TAG, start)
        # A tag may also be a part of a string.
        first = _SEPARATOR.match(text, start).end()  # type: ignore[union-attr]
        if tag >= 0 and not text.startswith(("{", "["), first):
            reading.said.append(text[start:tag])
            start = tag + len(TAG)
            if not text[start:].strip():
                reading.unparsed.append(Problem((tag, len(text)), f"nothing behind {TAG}"))
        stop = self._objects(text, start, reading)
        rest = text[stop:]
        reading.said.append(rest)
        if rest.strip():
            reading.foreign.extend(foreign_calls(text, stop, len(text), self.foreign_marks))
            if reading.calls:
                reading.leftover.append(Problem((stop, len(text)), "text behind the calls"))
        return reading.finish()

    def _objects(self, text: str, start: int, reading: Reading) -> int:
        """Read objects from `start` on; return the offset of what is no call."""
        json_reader, position = JsonReader(), start
        while True:
            if len(reading.calls) >= MAX_ITEMS:
                reading.unparsed.append(Problem((position, len(text)), f"more than {MAX_ITEMS} calls"))
                return len(text)
            begin = _SEPARATOR.match(text, position).end()  # type: ignore[union-attr]
            if text.startswith(TAG, begin):
                position = begin + len(TAG)
                continue
            if not text.startswith(("{", "["), begin):
                return position
            values, stop, _ = json_reader.first(text, begin, len(text))
            if values:
                if not _is_call(values[0].value):
                    return position
            elif _CALL_LIKE.match(text, begin):
                return self._broken(text, begin, reading, json_reader)
            else:
                return position
            for value in flatten(values, native=False):
                add_call(reading, value, _KEYS)
            position = stop

    def _broken(self, text: str, begin: int, reading: Reading, json_reader: JsonReader) -> int:
        """Read the rest of the text, which begins like a call, but is no JSON."""
        closed = open_brackets(text[begin:]) <= 0
        repaired = json_reader.repair(text, begin, len(text)) if closed else None
        for value in flatten(repaired or [], native=False):
            add_call(reading, value, _KEYS)
        if not repaired:
            reason = "not valid JSON" if closed else "cut off: a bracket is not closed"
            reading.unparsed.append(Problem((begin, len(text)), reason))
        return len(text)

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`. Text comes before the calls, with the tag between."""
        if thought is not None and "</think>" in thought:
            raise self.refuse("a thought with </think> in it:", thought)
        if response is not None and (TAG in response or response.lstrip()[:1] in ("{", "[", "")):
            raise self.refuse("a response like", response)
        marks = (TAG, "<think>", "</think>")
        lines = [dump({"name": call.name, "parameters": dict(call.arguments)}, marks) for call in calls]
        opening = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
        body = "\n".join(lines)
        return opening + (body if response is None else f"{response}{TAG * bool(calls)}{body}")


def _is_call(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and "name" in item for item in items)
