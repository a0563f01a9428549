"""Sets of rows that share nothing: no question, no row, and for the unseen tools not even a line on a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

from verl_toolrl.data.world.tasks import Kind
from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.formats.tool_list import row_tools
from verl_toolrl.toolbox import Tool

__all__ = ["HELD_OUT", "SPLITS", "choose_unseen", "question_key", "read_mix", "refuse_leaks", "schedule"]

HELD_OUT = ("seen", "unseen", "no_tool")
"""Held-out splits: tools of the training rows, tools that no training row shows, and no right call at all."""
SPLITS = ("train", "sft", *HELD_OUT)

DEFAULT_MIX: Mapping[Kind, float] = {
    Kind.ONE: 9,
    Kind.PARALLEL: 3,
    Kind.LOOKUP: 3,
    Kind.COMPUTED: 2,
    Kind.TALK: 1,
    Kind.MISSING: 2,
}
"""Shares of the kinds in training rows; held-out splits take the kinds that belong to them, in the same proportion."""


def read_mix(text: str) -> dict[Kind, float]:
    """Read `one=9,parallel=3,...`; kinds that are not named do not occur.

    Raises:
        ConfigError: If a kind is unknown, a share is no number or negative, or all are 0.
    """
    mix: dict[Kind, float] = {}
    for part in text.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if name not in {kind.value for kind in Kind}:
            raise UnknownNameError("kind of rows", name, [kind.value for kind in Kind])
        try:
            mix[Kind(name)] = float(share)
        except ValueError as err:
            raise ConfigError(f"mix: {part!r}: wanted kind=share, such as one=9,parallel=3") from err
    if min(mix.values()) < 0 or not sum(mix.values()):
        raise ConfigError(f"mix {text!r}: shares must not be negative and not all 0")
    return mix


def kinds_of(split: str, mix: Mapping[Kind, float]) -> dict[Kind, float]:
    """Return the kinds that a split takes out of a mix, with their shares.

    Raises:
        ConfigError: If the mix has none of them.
    """
    keep = {"seen": lambda kind: kind.has_calls, "unseen": lambda kind: kind.has_calls}
    keep["no_tool"] = lambda kind: not kind.has_calls
    found = {kind: share for kind, share in mix.items() if share > 0 and keep.get(split, lambda kind: True)(kind)}
    if not found and split == "no_tool":
        return {Kind.MISSING: 1.0}
    if not found:
        raise ConfigError(f"split {split!r} needs a kind with calls in the mix, found {', '.join(mix)}")
    return found


def schedule(mix: Mapping[Kind, float], count: int, draw: Random) -> list[Kind]:
    """Return `count` kinds in random order, their numbers in the proportion of the mix, to within one."""
    total = sum(mix.values())
    given = dict.fromkeys(mix, 0)
    kinds = []
    for number in range(1, count + 1):
        # Whoever is furthest behind its share comes next.
        behind = max(mix, key=lambda kind: mix[kind] / total * number - given[kind])
        given[behind] += 1
        kinds.append(behind)
    draw.shuffle(kinds)
    return kinds


def choose_unseen(tools: Sequence[Tool], names: Sequence[str] | None, draw: Random) -> list[str]:
    """Return the tools that stay out of training: those named, or about a fifth, from different domains.

    Raises:
        UnknownNameError: If a name is not in the tool set.
        ConfigError: If no tool would be left to train on.
    """
    known = {tool.name: tool for tool in tools}
    if names is not None:
        for name in names:
            if name not in known:
                raise UnknownNameError("unseen tool", name, known)
        if len(set(names)) >= len(known):
            raise ConfigError(f"all {len(known)} tools are named as unseen; none is left to train on")
        return sorted(set(names), key=list(known).index)
    count = max(1, len(known) // 5) if len(known) >= 3 else 0
    domains: dict[str, list[str]] = {}
    for tool in tools:
        domains.setdefault(tool.domain, []).append(tool.name)
    chosen: list[str] = []
    # The largest domains give first, so that each keeps tools to train on; tools without parameters stay.
    for domain in sorted(domains, key=lambda each: (-len(domains[each]), each)) * count:
        free = [
            name for name in domains[domain] if name not in chosen and known[name].schema.parameters.get("properties")
        ]
        if len(chosen) < count and len(free) > 1:
            chosen.append(draw.choice(free))
    return sorted(chosen, key=list(known).index)


def question_key(text: str) -> str:
    """Return a question without case, spacing and punctuation at its ends: what makes two rows the same question."""
    return " ".join(text.casefold().split()).strip(" .!?")


def refuse_leaks(splits: Mapping[str, Sequence[Mapping[str, Any]]], *, unseen: Iterable[str] = ()) -> None:
    """Make sure that nothing of a held-out split is trained on.

    Args:
        splits: Name -> rows, RL rows or SFT rows; those of `HELD_OUT` are held out.
        unseen: Tools that no training row may show.

    Raises:
        DatasetError: For the first question that stands in two splits or twice in one, that a training row asks in an
            earlier turn and a held-out row in the end, and for the first training row that lists an unseen tool; the
            text names the rows.
    """
    hidden = set(unseen)
    places: dict[str, str] = {}
    for name, rows in splits.items():
        for index, row in enumerate(rows):
            where, asked = f"{name}: row {index}", _asked(row)[-1]
            key = question_key(asked)
            if key in places:
                raise DatasetError(f"{where} asks the same as {places[key]}: {asked[-120:]!r}")
            places[key] = where
    for name, rows in splits.items():
        for index, row in enumerate(rows):
            where = f"{name}: row {index}"
            for asked in () if name in HELD_OUT else _asked(row)[:-1]:
                other = places.get(question_key(asked), "")
                if other.partition(":")[0] in HELD_OUT:
                    raise DatasetError(f"{where} asks earlier in its dialogue the same as {other}: {asked[-120:]!r}")
            if hidden and name not in HELD_OUT:
                shown = {tool["name"] for tool in row_tools(row if "prompt" in row else {"prompt": row["messages"]})}
                extra = row.get("tools")
                shown |= {tool["function"]["name"] for tool in json.loads(extra)} if isinstance(extra, str) else set()
                for tool in sorted(shown & hidden):
                    raise DatasetError(f"{where} shows the tool {tool!r}, which is held out as unseen")


def _asked(row: Mapping[str, Any]) -> list[str]:
    """Return all that the user says in a row; the last is its question."""
    messages = row["prompt"] if "prompt" in row else row["messages"]
    said = [str(message["content"]) for message in messages if message["role"] == "user"]
    marked = [text for each in said for text in re.findall(r"<user>(.*?)</user>", each, re.DOTALL)]
    return marked or said
