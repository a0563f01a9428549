"""What reading a response gives, and what a dialect can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from verl_toolrl.errors import ConfigError
from verl_toolrl.trajectory import ToolCall

__all__ = ["Dialect", "ParsedResponse", "Problem", "Reading"]


class Problem(NamedTuple):
    """A piece of text that was not written as the dialect asks."""

    span: tuple[int, int]
    """Character offsets [start, end)."""
    reason: str
    """What is wrong, in words."""


class ParsedResponse(NamedTuple):
    """One response, taken apart. Offsets count characters of the text that was read."""

    calls: tuple[ToolCall, ...] = ()
    """Calls in the order written, with spans; those quoted inside a thought are no calls."""
    thought: str | None = None
    """Reasoning, stripped; several thoughts are joined by an empty line. None if there is none."""
    response: str | None = None
    """What the user gets to read, stripped; None if there is nothing."""
    unparsed: tuple[Problem, ...] = ()
    """Pieces that look like calls of this dialect and could not be read, and why."""
    foreign: tuple[Problem, ...] = ()
    """Calls written in another dialect; they are not read."""
    repaired: tuple[Problem, ...] = ()
    """Pieces that were read although they are not written as the dialect asks."""
    leftover: tuple[Problem, ...] = ()
    """Text that the dialect has no place for, and pieces in the wrong order."""

    @property
    def well_formed(self) -> bool:
        """True if all of the text was in this dialect: something was said, and nothing repaired or left over."""
        spoken = bool(self.calls) or bool(self.response)
        return spoken and not (self.unparsed or self.foreign or self.repaired or self.leftover)


@dataclass
class Reading:
    """What a reader has collected so far; `finish` makes a `ParsedResponse` of it."""

    calls: list[ToolCall] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    unparsed: list[Problem] = field(default_factory=list)
    foreign: list[Problem] = field(default_factory=list)
    repaired: list[Problem] = field(default_factory=list)
    leftover: list[Problem] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """Kinds of the parts in the order met: thought, open thought (without its tag), calls, response."""

    def retract(self) -> None:
        """Forget what was read so far, because it turns out to be a thought."""
        parts: list[list[Any]] = [self.calls, self.said, self.unparsed, self.foreign, self.repaired, self.leftover]
        for part in (*parts, self.order):
            part.clear()

    def finish(self) -> ParsedResponse:
        """Return the result."""
        thought = "\n\n".join(text for text in map(str.strip, self.thoughts) if text)
        response = "".join(self.said).strip()
        return ParsedResponse(
            tuple(self.calls),
            thought or ("" if self.thoughts else None),
            response or None,
            tuple(self.unparsed),
            tuple(self.foreign),
            tuple(self.repaired),
            tuple(self.leftover),
        )


class Dialect(ABC):
    """A way to write calls."""

    name: str
    """Name in recipes."""
    special_tokens: bool = False
    """Calls are written with special tokens of the tokenizer: a text that is decoded without them has lost them."""

    @abstractmethod
    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart.

        Args:
            text: What the model wrote, without the prompt.
            tools: Schemas of the tools, for dialects that write arguments without their type.
            in_thought: The prompt ended inside an open thought (the template wrote `<think>`).

        Returns:
            The parts. Never raises on what a model wrote.
        """

    @abstractmethod
    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; reading the text gives them back.

        Raises:
            ConfigError: If the dialect cannot express a name, the thought or the response.
        """

    def refuse(self, what: str, value: object) -> ConfigError:
        """Return the error for something that the dialect cannot express."""
        return ConfigError(f"dialect {self.name} cannot write {what} {value!r}")
