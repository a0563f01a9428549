"""Texts made of `<think>`, `<tool_call>` and, for ToolRL, `<response>` blocks: what ToolRL and Hermes share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import MAX_ITEMS, JsonReader, Value, flatten

__all__ = ["CLOSE", "MARKS", "OPEN", "TaggedDialect"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = ("<think>", "</think>", OPEN, CLOSE, "<response>", "</response>")


class TaggedDialect(Dialect):
    """Calls between `<tool_call>` and `</tool_call>`.

    A thought runs to the first `</think>`. One without its opening tag (the template wrote it) begins with the text, so
    that calls quoted before a lone `</think>` are no calls. A block is read JSON first, so that tags inside strings are
    text. Where an opening tag follows another without a closing one between, the first is unclosed.
    """

    foreign_marks: tuple[str, ...] = ()
    """Names of the marks that other dialects write, for `foreign_calls`."""
    native_arrays: bool = False
    """Whether an array of calls in one block is good style."""
    marks: re.Pattern[str]
    """The tags that this dialect knows, outside calls."""

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading, json_reader, position = Reading(), JsonReader(), 0
        if in_thought:
            position = self._thought(text, 0, 0, reading)
        while position < len(text):
            mark = self.marks.search(text, position)
            begin = mark.start() if mark else len(text)
            if begin > position:
                self._plain(text, position, begin, reading)
            if mark is None:
                break
            if len(reading.order) + len(reading.leftover) >= MAX_ITEMS:
                reading.unparsed.append(Problem((begin, len(text)), f"more than {MAX_ITEMS} tags"))
                break
            tag, position = mark.group(), mark.end()
            if tag == "<think>":
                position = self._thought(text, begin, position, reading)
            elif tag == "</think>":
                self._lone_close(text, begin, position, reading)
            elif tag == OPEN:
                position = self._block(text, begin, position, reading, json_reader)
            elif tag == "<response>":
                position = self._response(text, begin, position, reading)
            else:
                reading.leftover.append(Problem((begin, position), f"{tag} without its opening tag"))
        self._check_order(text, reading)
        return reading.finish()

    def _thought(self, text: str, begin: int, start: int, reading: Reading) -> int:
        end = text.find("</think>", start)
        reading.thoughts.append(text[start : end if end >= 0 else None])
        reading.order.append("thought")
        if end < 0:
            reading.leftover.append(Problem((begin, len(text)), "</think> is missing"))
            return len(text)
        return end + len("</think>")

    def _lone_close(self, text: str, begin: int, end: int, reading: Reading) -> None:
        if reading.thoughts:
            reading.leftover.append(Problem((begin, end), "</think> without its opening tag"))
        else:
            reading.retract()
            reading.thoughts.append(text[:begin])
            reading.order.append("open thought")

    def _block(self, text: str, begin: int, start: int, reading: Reading, json_reader: JsonReader) -> int:
        reading.order.append("calls")
        block = json_reader.block(text, start, OPEN, CLOSE)
        for value in flatten(block.values, self.native_arrays):
            self._add(reading, value)
        if not block.closed:
            # Opening tags in between begin blocks that are not closed either.
            for opening in islice(re.finditer(OPEN, text[begin : block.end]), MAX_ITEMS):
                reading.unparsed.append(Problem((begin + opening.start(), block.end), f"{CLOSE} is missing"))
        elif block.problem:
            reading.unparsed.append(Problem((block.problem_start, block.end), block.problem))
        elif not block.values:
            reading.unparsed.append(Problem((begin, block.end), "an empty block"))
        return block.end

    def _check_order(self, text: str, reading: Reading) -> None:
        """Report parts in a wrong order; free by default."""

    def _add(self, reading: Reading, value: Value) -> None:
        raise NotImplementedError

    def _plain(self, text: str, start: int, end: int, reading: Reading) -> None:
        """Text outside tags."""
        raise NotImplementedError

    def _response(self, text: str, begin: int, start: int, reading: Reading) -> int:
        raise NotImplementedError

    def _foreign(self, text: str, start: int, end: int, reading: Reading) -> None:
        reading.foreign.extend(foreign_calls(text, start, end, self.foreign_marks))

    def _thought_text(self, thought: str | None) -> str:
        if thought is None:
            return ""
        if "</think>" in thought:
            raise self.refuse("a thought with </think> in it:", thought)
        return f"<think> {thought} </think>\n"
