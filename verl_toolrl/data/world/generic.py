"""Phrases for tools that nobody wrote any for, from their schemas: what the tool does, then every value by its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Arguments, spelled
from verl_toolrl.data.world.values import draw_arguments
from verl_toolrl.errors import DatasetError
from verl_toolrl.toolbox import Tool
from verl_toolrl.toolbox.arguments import compile_schema
from verl_toolrl.toolbox.schema import checkable

__all__ = ["GENERIC_WORDINGS", "SchemaPhrases", "first_sentence"]

GENERIC_WORDINGS = 5
"""Ways to say it; the last is kept for held-out rows."""
_TRIES = 50


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, without line breaks and the full stop."""
    return re.split(r"\.\s+(?=[A-Z0-9])", " ".join(text.split()), maxsplit=1)[0].rstrip(". ")


class SchemaPhrases:
    """Draws calls of one tool and says them.

    Args:
        tool: Any tool.

    Raises:
        DatasetError: If no arguments can be drawn that its schema accepts.
    """

    def __init__(self, tool: Tool) -> None:
        self._name = tool.name
        self._does = _as_a_wish(first_sentence(tool.schema.description))
        self._schema: Mapping[str, Any] = checkable(tool.schema.parameters)
        self._validator = compile_schema(self._schema, f"tool {tool.name!r}")
        self.draw(Random(0))

    def draw(self, draw: Random) -> Arguments:
        """Return arguments that the schema accepts."""
        for _ in range(_TRIES):
            arguments = draw_arguments(self._schema, draw)
            if self._validator.is_valid(arguments):
                return arguments
        problem = next(iter(self._validator.iter_errors(arguments)))
        where = ".".join(map(str, problem.instance_path)) or "arguments"
        raise DatasetError(
            f"tool {self._name!r}: no value can be made up for {where}: {problem.message[:160]}; "
            f"give 'examples' in its schema"
        )

    def say(self, arguments: Arguments, wording: int) -> str:
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
            return plain[wording % GENERIC_WORDINGS]
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
        return forms[wording % GENERIC_WORDINGS]


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
