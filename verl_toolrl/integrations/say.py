"""Saying something in the log of a run.

In verl's Ray actors a warning of a logger of ours goes nowhere; what is printed stands in the log, behind the actor.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["SAID", "say", "say_at_first"]

SAID = "verl-toolrl: "
"""Begin of such a line, by which the launcher finds it and shows it."""

_said: Counter[str] = Counter()


def say(text: str) -> None:
    """Print one line."""
    print(f"{SAID}{text}", flush=True)


def say_at_first(kind: str, text: str, *, times: int = 10) -> None:
    """Print one line the first `times` times that a process has something of this kind to say, then each 100th."""
    _said[kind] += 1
    count = _said[kind]
    if count <= times or count % 100 == 0:
        say(f"{text} [{kind}: {count} so far in this process]" if count >= times else text)
