"""What a check says about one key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Finding", "Report", "did_you_mean"]


@dataclass(frozen=True)
class Finding:
    """One mistake, or one thing that is left to give."""

    key: str
    """Dotted key in the composed recipe; empty where the recipe as a whole is meant."""
    message: str
    is_error: bool = True
    """False for what must only be given on the command line, or may be meant."""
    file: str = ""
    line: int = 0
    is_left: bool = False
    """Whether it must be given, by the recipe or on the command line, before a run can start."""

    @property
    def text(self) -> str:
        """Place, key and message in one line, without what is empty."""
        return ": ".join(part for part in (self.place, self.key, self.message) if part)

    @property
    def place(self) -> str:
        """`file:line`, `command line`, or an empty text for a key that nothing of the recipe sets."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Report:
    """The check of one recipe in one combination of choices."""

    recipe: str
    overrides: list[str]
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings that a run would suffer from."""
        return [finding for finding in self.findings if finding.is_error]

    @property
    def label(self) -> str:
        """The recipe and the choices it was composed with."""
        return " ".join([self.recipe, *self.overrides])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the closest of `known` (or two that are both close), or an empty text."""
    options = sorted(set(known))
    found = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    found += [other for other in difflib.get_close_matches(name, options, n=2, cutoff=0.8) if other not in found]
    if not found and len(name) >= 4:
        similar = [option for option in options if name in option or (len(option) >= 4 and option in name)]
        found = sorted(similar, key=len)[:1]
    return f", did you mean {' or '.join(map(repr, found))}?" if found else ""
