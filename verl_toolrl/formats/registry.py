"""The dialects by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.formats.base import Dialect, ParsedResponse
from verl_toolrl.formats.hermes import HermesDialect
from verl_toolrl.formats.llama3_json import Llama3JsonDialect
from verl_toolrl.formats.mistral import MistralDialect
from verl_toolrl.formats.openai import OpenAIDialect
from verl_toolrl.formats.pythonic import PythonicDialect
from verl_toolrl.formats.qwen3_coder import Qwen3CoderDialect
from verl_toolrl.formats.react import ReActDialect
from verl_toolrl.formats.toolrl import ToolRLDialect
from verl_toolrl.trajectory import ToolCall

__all__ = ["DIALECTS", "get_dialect", "parse_response", "write_response"]

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        ToolRLDialect(),
        HermesDialect(),
        Qwen3CoderDialect(),
        Llama3JsonDialect(),
        PythonicDialect(),
        MistralDialect(),
        ReActDialect(),
        OpenAIDialect(),
    )
}
"""Name -> dialect. Dialects hold no state."""

_ALIASES = {"qwen": "hermes", "llama3_pythonic": "pythonic"}


def get_dialect(name: str) -> Dialect:
    """Return a dialect.

    Raises:
        ConfigError: If the name is unknown; the nearest one is named.
    """
    dialect = DIALECTS.get(_ALIASES.get(name, name))
    if dialect is None:
        known = [*DIALECTS, *_ALIASES]
        raise ConfigError(f"unknown dialect {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return dialect


def parse_response(
    text: Any, dialect: str = "toolrl", *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False
) -> ParsedResponse:
    """Take a response apart; see `Dialect.read`.

    Raises:
        ConfigError: If the dialect is unknown, or `text` is not text (nor an object, for `openai`).
    """
    reader = get_dialect(dialect)
    if not isinstance(text, str) and not (reader.name == "openai" and isinstance(text, Mapping)):
        raise ConfigError(f"response must be text, got {type(text).__name__}")
    return reader.read(text, tools=tools, in_thought=in_thought)


def write_response(
    calls: Sequence[ToolCall],
    dialect: str = "toolrl",
    *,
    thought: str | None = None,
    response: str | None = None,
    tools: Iterable[Mapping[str, Any]] = (),
) -> str:
    """Write calls in a dialect; see `Dialect.write`."""
    return get_dialect(dialect).write(calls, thought=thought, response=response, tools=tools)
