"""One need and the call that serves it, and how phrases for a tool are written down.

    SELL = Phrases(
        "sell",
        draw=lambda draw: {"item": draw.choice(GOODS), "quantity": draw.randint(2, 60)},
        wordings=("Sell {quantity} pieces of {item}.", "A customer buys {quantity} pieces of {item}. Enter the sale."),
        lookups=(Lookup("quantity", "{who} wants {value} pieces", "Sell as many pieces of {item} as {who} wants."),),
    )

A wording names every argument of the call and no other, so that the question determines the call.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

__all__ = ["Arguments", "Ask", "Lookup", "Phrases", "arguments_of", "fields_of", "spelled", "with_facts"]

Arguments = dict[str, Any]
"""Of one call."""


@dataclass(frozen=True)
class Ask:
    """What somebody wants of one tool."""

    tool: str
    """Name of the tool."""
    arguments: Mapping[str, Any]
    """Arguments of the right call."""
    text: str
    """What the person says; whole sentences."""
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """State name -> keywords: what must be there for the call to work (an item in the stock)."""
    new_wording: bool = False
    """Whether the wording is one that training never shows."""


@dataclass(frozen=True)
class Lookup:
    """A way to leave one value to be found in a text of several facts."""

    key: str
    """The argument that is left out of the question."""
    fact: str
    """A fact of the text, with `{who}` and `{value}`."""
    wording: str
    """The question, with `{who}` instead of the value, and all other arguments."""


@dataclass(frozen=True)
class Phrases:
    """How people ask for one tool."""

    function: str
    """Name of the tool's Python function."""
    draw: Callable[[Random], Arguments]
    """Draws the arguments of one call; optional ones may be absent."""
    wordings: tuple[str, ...]
    """Sentences with `{argument}`; those fit that name exactly the arguments drawn. The last one that fits is kept for
    held-out rows if at least three do."""
    lookups: tuple[Lookup, ...] = ()
    """Ways to hide a value in a text."""
    computed: tuple[Callable[[Random], tuple[str, Arguments]], ...] = ()
    """Draw a question whose values must be worked out, and its arguments."""
    state: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """From arguments to the keywords of the tool's state that make the call work."""


def fields_of(wording: str) -> frozenset[str]:
    """Return the names in braces of a wording."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(wording) if name)


def arguments_of(lookup: Lookup) -> frozenset[str]:
    """Return the names of the arguments that a question with a lookup determines."""
    return frozenset(fields_of(lookup.wording) | fields_of(lookup.fact) - {"value"} | {lookup.key}) - {"who"}


def spelled(value: Any) -> str:
    """Write a value as a person would: text as it is, lists with commas, JSON words for the rest."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)) and not any(isinstance(each, (list, tuple, dict)) for each in value):
        return ", ".join(map(spelled, value))
    if isinstance(value, (dict, list, tuple)):
        import json

        return json.dumps(value, ensure_ascii=False)
    return str(value)


def with_facts(draw: Random, facts: list[str], question: str) -> str:
    """Return a text of facts in random order, and then the question."""
    draw.shuffle(facts)
    return f"{'. '.join(facts)}. {question}"
