"""The errors of this package, and who has to act on each.

What a model writes never raises: it is a value (`ParsedResponse`, `Outcome.MODEL_ERROR`). What an author writes wrong
(a recipe, a row of data, a tool) raises a subclass of `AuthorError` at once. What the machine or a server does wrong is
an `InfrastructureError`: it is counted and never becomes a reward. All classes pickle, because Ray carries them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AuthorError",
    "ConfigError",
    "DatasetError",
    "InfrastructureError",
    "ToolDefinitionError",
    "ToolRLError",
    "UnknownNameError",
    "nearest",
]


class ToolRLError(Exception):
    """Base of every error that this package raises on purpose."""


class AuthorError(ToolRLError, ValueError):
    """Something a person wrote is wrong. The text says where, what was found and what was wanted."""


class ConfigError(AuthorError):
    """A recipe, an option or an argument of a function is wrong."""


class DatasetError(AuthorError):
    """A row of data is wrong. The text names the row."""


class ToolDefinitionError(AuthorError):
    """A tool or a tool set is wrong: no types, no docstring, an invalid schema, a name given twice."""


class UnknownNameError(ConfigError):
    """A name that nobody registered. The text lists the nearest valid names and where names of this kind come from."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(
            f"unknown {kind} {name!r}{nearest(name, self.known)}; known: {', '.join(self.known) or 'none'}"
        )

    def __reduce__(self) -> tuple[type, tuple[str, object, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class InfrastructureError(ToolRLError, RuntimeError):
    """A server, a process or the network failed. No choice of words caused it, so no reward may follow from it."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the closest of `known`, or an empty text when none is close."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f", did you mean {matches[0]!r}?" if matches else ""
