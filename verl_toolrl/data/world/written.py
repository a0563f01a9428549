"""Needs for tools that somebody wrote phrases for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Ask, Phrases, arguments_of, fields_of, spelled, with_facts
from verl_toolrl.data.world.pools import SPEAKERS
from verl_toolrl.toolbox import Tool

__all__ = ["WrittenSubject"]


class WrittenSubject:
    """Draws what people want of one tool, in the words of its phrases; see `subjects.Subject`."""

    written = True

    def __init__(self, tool: Tool, phrases: Phrases) -> None:
        self.tool, self._phrases = tool, phrases

    def ask(self, draw: Random, *, held_out: bool) -> Ask:
        """Draw a need whose values all stand in the text."""
        arguments = self._phrases.draw(draw)
        fitting = [wording for wording in self._phrases.wordings if fields_of(wording) == set(arguments)]
        kept = 1 if len(fitting) >= 3 else 0
        known, new = fitting[: len(fitting) - kept], fitting[len(fitting) - kept :]
        is_new = held_out and bool(new) and draw.random() < 0.5
        text = draw.choice(new if is_new else known).format(**_spelled(arguments))
        return Ask(self.tool.name, arguments, text, self._state(arguments), is_new)

    def lookup(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be found among facts about several people."""
        people = draw.sample(SPEAKERS, 3)
        if not self._phrases.lookups:
            return None
        way = draw.choice(self._phrases.lookups)
        wanted = arguments_of(way)
        arguments = _drawn(draw, self._phrases.draw, lambda found: set(found) == wanted)
        if arguments is None:
            return None
        fixed = (fields_of(way.fact) - {"who", "value"}) & set(arguments)
        values = [arguments[way.key]]
        while len(values) < len(people):
            other = _drawn(
                draw,
                self._phrases.draw,
                lambda found: (
                    way.key in found
                    and found[way.key] not in values
                    and all(found.get(key) == arguments[key] for key in fixed)
                ),
            )
            if other is None:
                return None
            values.append(other[way.key])
        slots = _spelled({key: value for key, value in arguments.items() if key != way.key})
        facts = [
            way.fact.format(**{**slots, "who": who, "value": spelled(value)})
            for who, value in zip(people, values, strict=True)
        ]
        question = way.wording.format(**slots, who=people[0])
        return Ask(self.tool.name, arguments, with_facts(draw, facts, question), self._state(arguments))

    def computed(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be worked out."""
        if not self._phrases.computed:
            return None
        text, arguments = draw.choice(self._phrases.computed)(draw)
        return Ask(self.tool.name, arguments, text, self._state(arguments))

    def _state(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._phrases.state is None or self.tool.state is None:
            return {}
        return {self.tool.state.name: dict(self._phrases.state(arguments))}


def _drawn(
    draw: Random, make: Callable[[Random], dict[str, Any]], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    return next((found for found in (make(draw) for _ in range(300)) if fits(found)), None)


def _spelled(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {key: spelled(value) for key, value in arguments.items()}
