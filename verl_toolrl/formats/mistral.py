"""Mistral: `[TOOL_CALLS]`, then a JSON array (tokenizer v3) or name and arguments (v11 and later).

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[CALL_ID]000000001[ARGS]{}

The marks in square brackets are special tokens of Mistral's tokenizers.

Source: mistral-common. Thoughts stand in `[THINK]…[/THINK]` or `<think>` tags. We write the form of v11.
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

__all__ = ["MistralDialect"]

TAG = "[TOOL_CALLS]"
_THOUGHTS = (("[THINK]", "[/THINK]"), ("<think>", "</think>"))
_MARKS = (TAG, "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<think>", "</think>")
_NAMED = re.compile(r"\s*([^\[\]{}\n]{1,256}?)\s*(?:\[CALL_ID\]\s*([\w-]{1,64})\s*)?\[ARGS\]\s*")


class MistralDialect(Dialect):
    """Text before the first `[TOOL_CALLS]` is for the user."""

    name = "mistral"
    special_tokens = True
    foreign_marks = ("tool_call", "function", "python_tag", "react", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading, json_reader = Reading(), JsonReader()
        position = skip_thought(text, reading, in_thought, _THOUGHTS)
        tag = text.find(TAG, position)
        if tag < 0:
            tag = len(text)
        reading.said.append(text[position:tag])
        reading.foreign.extend(foreign_calls(text, position, tag, self.foreign_marks))
        while tag < len(text):
            if len(reading.calls) + len(reading.unparsed) >= MAX_ITEMS:
                reading.unparsed.append(Problem((tag, len(text)), f"more than {MAX_ITEMS} calls"))
                break
            position = self._call(text, tag, reading, json_reader)
            tag = text.find(TAG, position)
            if tag < 0:
                tag = len(text)
            if text[position:tag].strip():
                reading.said.append(text[position:tag])
                reading.leftover.append(Problem((position, tag), "text behind a call"))
                reading.foreign.extend(foreign_calls(text, position, tag, self.foreign_marks))
        return reading.finish()

    def _call(self, text: str, tag: int, reading: Reading, json_reader: JsonReader) -> int:
        """Read what follows one `[TOOL_CALLS]`; return the offset behind it."""
        start = tag + len(TAG)
        named = _NAMED.match(text, start)
        begin = named.end() if named else start
        following = text.find(TAG, begin)
        end = following if following >= 0 else len(text)
        values, stop, reason = json_reader.first(text, begin, end)
        if not values:
            stop = end
            if reason != "no JSON value" and open_brackets(text[begin:stop]) <= 0:
                values = (json_reader.repair(text, begin, stop) or [])[:1]
        if not values:
            reading.unparsed.append(Problem((tag, stop), reason or "not valid JSON"))
            return stop
        if named:
            value = {"name": named.group(1), "arguments": values[0].value, "id": named.group(2)}
            add_call(reading, Value(value, tag, stop, values[0].repair), ("arguments",))
        else:
            self._array(values[0], reading)
        return stop

    def _array(self, value: Value, reading: Reading) -> None:
        """Add the calls of the array that v3 writes; a single object without its array is taken as a repair."""
        if isinstance(value.value, list):
            for item in value.value[:MAX_ITEMS]:
                add_call(reading, Value(item, value.start, value.end, value.repair), ("arguments",), ("parameters",))
        else:
            lone = Value(value.value, value.start, value.end, value.repair or "an object without its array")
            add_call(reading, lone, ("arguments",), ("parameters",))

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`. A name that v11 cannot hold makes all calls go into the array of v3."""
        if any(mark in text for mark in _MARKS for text in (thought or "", response or "")):
            raise self.refuse("tags inside text:", thought if thought else response)
        opening = ("" if thought is None else f"[THINK]{thought}[/THINK]") + (response or "")
        if all(re.fullmatch(r"[^\s\[\]{}]([^\[\]{}\n]{0,254}[^\s\[\]{}])?", call.name) for call in calls):
            parts = [f"{TAG}{call.name}[ARGS]{dump(dict(call.arguments), _MARKS[-2:])}" for call in calls]
            return opening + "".join(parts)
        array = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
        return f"{opening}{TAG} {dump(array, _MARKS[-2:])}"
