"""Cutting thoughts off the front of a text, for dialects that have no tags of their own for them."""

from __future__ import annotations

import re

from verl_toolrl.formats.base import Problem, Reading
from verl_toolrl.formats.json_text import MAX_ITEMS

__all__ = ["skip_space", "skip_thought"]

_SPACE = re.compile(r"\s*")


def skip_thought(
    text: str, reading: Reading, in_thought: bool, tags: tuple[tuple[str, str], ...] = (("<think>", "</think>"),)
) -> int:
    """Move leading thoughts into `reading` and return the offset behind them.

    Args:
        text: The response.
        reading: Where thoughts go; an unclosed one is also reported as left over.
        in_thought: The prompt ended inside an open thought.
        tags: Pairs of opening and closing tag.
    """
    position = 0
    if in_thought:
        position = _close(text, 0, 0, tags[0][1], reading)
    else:
        # A closing tag without its opening one: the template wrote that one.
        for opening, closing in tags:
            end = text.find(closing)
            if end >= 0 and text.find(opening, 0, end) < 0 and not text[:end].lstrip().startswith(("{", "[")):
                position = _close(text, 0, 0, closing, reading)
                break
    while True:
        start = skip_space(text, position)
        for opening, closing in tags if len(reading.thoughts) < MAX_ITEMS else ():
            if text.startswith(opening, start):
                position = _close(text, start, start + len(opening), closing, reading)
                break
        else:
            return position


def skip_space(text: str, position: int) -> int:
    """Return the offset of the first character from `position` on that is no white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _close(text: str, begin: int, start: int, closing: str, reading: Reading) -> int:
    end = text.find(closing, start)
    reading.thoughts.append(text[start : end if end >= 0 else None])
    if end < 0:
        reading.leftover.append(Problem((begin, len(text)), f"{closing} is missing"))
        return len(text)
    return end + len(closing)
