"""Needs for tools that nobody wrote phrases for: what the tool does, by its description, then each value by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Arguments, Ask, spelled, with_facts
from verl_toolrl.data.world.pools import SPEAKERS
from verl_toolrl.data.world.values import draw_arguments
from verl_toolrl.errors import DatasetError
from verl_toolrl.toolbox import Tool
from verl_toolrl.toolbox.arguments import compile_schema
from verl_toolrl.toolbox.schema import checkable

__all__ = ["SchemaSubject", "first_sentence"]

_WORDINGS = 5
"""Ways to say it; the last is kept for held-out rows."""
_TRIES = 50


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, without line breaks and the full stop."""
    return re.split(r"\.\s+(?=[A-Z0-9])", " ".join(text.split()), maxsplit=1)[0].rstrip(". ")


class SchemaSubject:
    """Draws what people want of one tool, in the words of its schema; see `subjects.Subject`.

    Args:
        tool: Any tool.

    Raises:
        DatasetError: If no arguments can be drawn that its schema accepts.
    """

    written = False

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._does = _as_a_wish(first_sentence(tool.schema.description))
        self._schema: Mapping[str, Any] = checkable(tool.schema.parameters)
        self._validator = compile_schema(self._schema, f"tool {tool.name!r}")
        self._draw(Random(0))

    def ask(self, draw: Random, *, held_out: bool) -> Ask:
        """Draw a need whose values all stand in the text."""
        arguments, wording = self._draw(draw), draw.randrange(_WORDINGS - (not held_out))
        return Ask(self.tool.name, arguments, self._say(arguments, wording), new_wording=wording == _WORDINGS - 1)

    def lookup(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be found among facts about several people."""
        people, arguments = draw.sample(SPEAKERS, 3), self._draw(draw)
        keys = [key for key, value in arguments.items() if isinstance(value, (str, int, float)) and value != ""]
        keys = [key for key in keys if not isinstance(arguments[key], bool)]
        if not keys:
            return None
        key = draw.choice(keys)
        values = [arguments[key]]
        for _ in range(50):
            value = self._draw(draw).get(key)
            if value is not None and value not in values:
                values.append(value)
            if len(values) == len(people):
                break
        else:
            return None
        noun = key.replace("_", " ")
        facts = [f"The {noun} of {who} is {spelled(value)}" for who, value in zip(people, values, strict=True)]
        question = self._say({**arguments, key: f"that of {people[0]}"}, draw.randrange(_WORDINGS - 1))
        question = question.replace(f'"that of {people[0]}"', f"that of {people[0]}")
        return Ask(self.tool.name, arguments, with_facts(draw, facts, question))

    def computed(self, draw: Random) -> Ask | None:
        """Draw a need with an integer that must be worked out."""
        arguments = self._draw(draw)
        keys = [key for key, value in arguments.items() if type(value) is int and value >= 4]
        if not keys:
            return None
        key = draw.choice(keys)
        part = draw.randint(1, arguments[key] - 1)
        said = f"the sum of {part} and {arguments[key] - part}"
        question = self._say({**arguments, key: said}, draw.randrange(_WORDINGS - 1))
        return Ask(self.tool.name, arguments, question.replace(f'"{said}"', said))

    def _draw(self, draw: Random) -> Arguments:
        for _ in range(_TRIES):
            arguments = draw_arguments(self._schema, draw)
            if self._validator.is_valid(arguments):
                return arguments
        problem = next(iter(self._validator.iter_errors(arguments)))
        where = ".".join(map(str, problem.instance_path)) or "arguments"
        raise DatasetError(
            f"tool {self.tool.name!r}: no value can be made up for {where}: {problem.message[:160]}; "
            f"give 'examples' in its schema"
        )

    def _say(self, arguments: Arguments, wording: int) -> str:
        """Return a question that names every argument and its value."""
        does = self._does
        small = does[:1].lower() + does[1:] if does[1:2].islower() else does
        if not arguments:
            plain = (
                f"{does}.",
                f"Now I want this: {small}.",
                f"What I need: {small}.",
                f"{does}, please.",
                f"Do this: {small}.",
            )
            return plain[wording % _WORDINGS]
        pairs = [(_noun(key), _quoted(value)) for key, value in arguments.items()]
        said = _listed([f"{noun} {value}" for noun, value in pairs])
        colons = ", ".join(f"{noun}: {value}" for noun, value in pairs)
        forms = (
            f"{does}, with {said}.",
            f"I want this: {small}. {colons[:1].upper()}{colons[1:]}.",
            f"What I need: {small}. The values are {said}.",
            f"{does}: {said}.",
            f"For {said}, do this: {small}.",
        )
        return forms[wording % _WORDINGS]


def _as_a_wish(does: str) -> str:
    """Turn what documentation says of a function into what a person wants: `Returns the sum` into `Tell me the sum`."""
    does = re.sub(r"^(Return|Get|Retrieve|Fetch)(e?s)? ", "Tell me ", does)
    verb = re.match(r"([A-Z][a-z]+?)(s|(?<=ch|sh|ss)es) (?=(?:the|a|an|all|one) )", does)
    return f"{verb.group(1)}{does[verb.end() - 1 :]}" if verb else does


def _noun(key: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", key).strip().lower() or key


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)  # where one list ends and the next value begins must be clear
    text = spelled(value)
    return f'"{text}"' if isinstance(value, str) and re.search(r"[\s,:;.]", text) else text


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
