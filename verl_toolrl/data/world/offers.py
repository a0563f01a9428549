"""Which tools stand on the list: those that are needed, and others that must not do just as well."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from verl_toolrl.errors import ConfigError
from verl_toolrl.toolbox import Tool

__all__ = ["could_serve", "described", "finds_anything", "offer", "shared_lists", "unrelated"]

_RIVALS = tuple(
    frozenset(pair)
    for pair in (
        ("calculate", "summarize_numbers"),
        ("calculate", "convert_unit"),
        ("calculate", "query"),
        ("summarize_numbers", "query"),
        ("describe_database", "query"),
        ("search", "read_document"),
        ("list_items", "check_stock"),
    )
)
"""Ready-made tools of which either can do some of the other's work, by the names of their functions."""

_FINDS_ANYTHING = re.compile(r"\b(search|browse|web|http|fetch|python|code|script|shell|command)")
"""Tools that may find or do nearly anything; next to them no wish is beyond all tools."""
_OPEN_ENDED = re.compile(r"\b(sql|query|expression)")
"""Tools that might stand in for another of their set; next to them none of it is missing."""
_COMMON = frozenset(
    "a an and as at by for from get given in into is it its list look make of on one or return set show some tell text "
    "that the this to up use value what which with add find create update delete remove".split()
)


def described(tools: Sequence[Tool]) -> str:
    """Return names and descriptions of tools in small letters."""
    return "\n".join(f"{tool.name} {tool.schema.description}" for tool in tools).lower()


def could_serve(other: Tool, wanted: Tool) -> bool:
    """Whether a question for `wanted` might be served by `other` as well, so that they cannot stand on one list."""
    return frozenset((_function(other), _function(wanted))) in _RIVALS


def finds_anything(tool: Tool) -> bool:
    """Whether somebody might turn to the tool for a wish that no tool grants."""
    return _FINDS_ANYTHING.search(described([tool])) is not None


def unrelated(other: Tool, wanted: Tool) -> bool:
    """Whether nobody would think of `other` where `wanted` is missing.

    Tools of one domain, tools that share a word of their names, and those that can be turned to anything are related.
    """
    if other.name == wanted.name or could_serve(other, wanted) or (other.domain and other.domain == wanted.domain):
        return False
    if finds_anything(other) or _OPEN_ENDED.search(described([other])):
        return False
    return not _words(other.name) & _words(wanted.name) and len(_topic(other) & _topic(wanted)) < 2


def offer(draw: Random, needed: Sequence[Tool], others: Sequence[Tool], size: int) -> list[Tool]:
    """Return the needed tools and others up to `size`, in random order.

    Args:
        draw: Source of chance.
        needed: Tools that must stand on the list.
        others: Candidates for the rest; needed ones and their rivals among them are passed over.
        size: Tools wanted; the list is longer if more are needed and shorter if there are not enough.
    """
    names = {tool.name for tool in needed}
    free = [
        tool for tool in others if tool.name not in names and not any(could_serve(tool, wanted) for wanted in needed)
    ]
    chosen = [*needed, *draw.sample(free, min(len(free), max(0, size - len(needed))))]
    draw.shuffle(chosen)
    return chosen


def shared_lists(
    draw: Random, wanted: Sequence[Tool], others: Sequence[Tool], *, count: int, sizes: tuple[int, int]
) -> list[list[Tool]]:
    """Return lists that rows can share: any tool on one may be needed, so none may serve in place of another.

    Args:
        draw: Source of chance.
        wanted: Tools that rows call. Each list holds at least one of them, and they stand on about equally many.
        others: Tools for the rest of a list.
        count: Lists.
        sizes: Least and most tools on a list; shorter if too few go together.

    Raises:
        ConfigError: If a wanted tool would stand on no list.
    """
    used: Counter[str] = Counter()
    lists = []
    for _ in range(count):
        chosen: list[Tool] = []
        for pool, size in ((wanted, 1), (others, draw.randint(*sizes))):
            for tool in sorted(draw.sample(pool, len(pool)), key=lambda each: used[each.name]):
                if len(chosen) >= size:
                    break
                if not any(tool.name == other.name or could_serve(tool, other) for other in chosen):
                    chosen.append(tool)
        used.update(tool.name for tool in chosen)
        draw.shuffle(chosen)
        lists.append(chosen)
    missing = [tool.name for tool in wanted if not used[tool.name]]
    if missing:
        raise ConfigError(f"{count} lists of {sizes[0]} to {sizes[1]} tools have no place for {', '.join(missing)}")
    return lists


def _function(tool: Tool) -> str:
    ready_made = getattr(tool.function, "__module__", "").startswith("verl_toolrl.tools.")
    return tool.function.__name__ if ready_made else tool.name


def _words(name: str) -> set[str]:
    return {each.lower() for each in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)} - _COMMON


def _topic(tool: Tool) -> set[str]:
    return {each for each in re.findall(r"[a-z]{3,}", tool.schema.description.lower())} - _COMMON
