"""Phrases for the ready-made tools, written by hand; a file a domain."""

from __future__ import annotations

from verl_toolrl.data.world.asks import Phrases
from verl_toolrl.data.world.phrases import conversion, knowledge, math, people, shop, time
from verl_toolrl.toolbox import Tool

__all__ = ["phrases_for"]

_BY_MODULE: dict[str, tuple[Phrases, ...]] = {
    "calculator": math.CALCULATOR,
    "stats": math.STATS,
    "units": conversion.UNITS,
    "currency": conversion.CURRENCY,
    "dates": time.DATES,
    "agenda": time.AGENDA,
    "inventory": shop.INVENTORY,
    "contacts": people.CONTACTS,
    "corpus_search": knowledge.CORPUS,
    "sqlite_db": knowledge.DATABASE,
}


def phrases_for(tool: Tool) -> Phrases | None:
    """Return the phrases of a ready-made tool, under whatever name it stands in a set, or None.

    A tool whose state a tool set configures (another database, another corpus) has none: what is said here holds for
    the ready-made contents.
    """
    module = getattr(tool.function, "__module__", "").removeprefix("verl_toolrl.tools.")
    if tool.state is not None and tool.state.config:
        return None
    name = getattr(tool.function, "__name__", "")
    return next((each for each in _BY_MODULE.get(module, ()) if each.function == name), None)
