"""What people want of one tool, whoever wrote the words."""

from __future__ import annotations

from random import Random
from typing import Protocol

from verl_toolrl.data.world.asks import Ask
from verl_toolrl.data.world.generic import SchemaSubject
from verl_toolrl.data.world.phrases import phrases_for
from verl_toolrl.data.world.written import WrittenSubject
from verl_toolrl.toolbox import Tool

__all__ = ["Subject", "subject_of"]


class Subject(Protocol):
    """Draws needs for one tool."""

    tool: Tool
    written: bool
    """Whether somebody wrote phrases for it: it is ready-made, and what it does is known."""

    def ask(self, draw: Random, *, held_out: bool) -> Ask:
        """Draw a need whose values all stand in the text.

        Args:
            draw: Source of chance.
            held_out: Whether words may be used that training never shows.
        """
        ...

    def lookup(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be found among facts about several people; None if that cannot be."""
        ...

    def computed(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be worked out; None if that cannot be."""
        ...


def subject_of(tool: Tool) -> Subject:
    """Return the subject of a tool: by phrases written for it, or from its schema.

    Raises:
        DatasetError: If no arguments can be drawn that its schema accepts.
    """
    phrases = phrases_for(tool)
    return SchemaSubject(tool) if phrases is None else WrittenSubject(tool, phrases)
