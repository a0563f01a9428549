"""Limits of a tool and budgets of a trajectory, and the small gates that keep them.

`Limits` and `Budget` are what an author writes; `Gate`, `Pace`, `Breaker` and `Deadlines` are their counterparts at run
time. They call back instead of being awaited, because one awaited object a call is what the speed of the toolbox hangs
on.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from verl_toolrl.errors import ConfigError, nearest

__all__ = ["Breaker", "Budget", "Deadlines", "Gate", "Limits", "Pace"]


@dataclass(frozen=True)
class Limits:
    """What one tool may take. None means no limit."""

    timeout: float | None = 30.0
    """Seconds that one attempt may run, waiting for a place not counted. Inline sync tools cannot be stopped."""
    concurrency: int | None = None
    """Attempts that run at once, over all trajectories; a process tool without a number gets two workers."""
    rate: float | None = None
    """Attempts per second, over all trajectories."""
    retries: int = 0
    """Further attempts after an infrastructure failure or a time-out. Ask for them only where a call may run twice."""
    backoff: float = 0.2
    """Seconds before the first retry; doubles with each, with a random share taken off, and never above 30."""
    breaker: int | None = None
    """Infrastructure failures in a row after which the tool is left alone for `cooldown` seconds; then one call
    probes."""
    cooldown: float = 30.0
    """Seconds that an open breaker answers without running the tool."""
    output_tokens: int | None = 4096
    """Tokens of an answer that the model gets to read; a longer one is cut and says so."""
    memory_mb: int | None = None
    """Address space of a worker process in MiB. Only isolation `process` can promise it."""

    def __post_init__(self) -> None:
        _positive(
            self, "timeout", "concurrency", "rate", "backoff", "breaker", "cooldown", "output_tokens", "memory_mb"
        )
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"limits: retries must be a whole number >= 0, found {self.retries!r}")

    def replaced(self, changes: Mapping[str, Any]) -> Limits:
        """Return a copy with some fields changed, as a tool set writes them.

        Raises:
            ConfigError: If a key is unknown or a value out of range.
        """
        return Limits(**{**_values(self), **_known("limits", Limits, changes)})


@dataclass(frozen=True)
class Budget:
    """What one trajectory may take. None means no limit."""

    calls: int | None = None
    """Tool calls."""
    steps: int | None = None
    """Steps that call tools."""
    tokens: int | None = None
    """Tokens of tool answers."""
    seconds: float | None = None
    """Seconds that the tools take together, those that run at once counted once, waiting for a place and retries
    included. The clock stands still while the model writes, and while a trainer pauses the engine."""

    def __post_init__(self) -> None:
        _positive(self, "calls", "steps", "tokens", "seconds", what="budget")

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Budget:
        """Read the `budget:` block of a tool set.

        Raises:
            ConfigError: If a key is unknown or a value out of range.
        """
        return cls(**_known("budget", cls, data))


def _values(limits: Limits) -> dict[str, Any]:
    return {each.name: getattr(limits, each.name) for each in fields(limits)}


def _known(what: str, cls: type, data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{what}: wanted a mapping, found {type(data).__name__}")
    names = [each.name for each in fields(cls)]
    for key in data:
        if key not in names:
            raise ConfigError(f"{what}: unknown key {key!r}{nearest(key, names)}; known: {', '.join(names)}")
    return dict(data)


def _positive(obj: Any, *names: str, what: str = "limits") -> None:
    whole = {"concurrency", "breaker", "output_tokens", "memory_mb", "calls", "steps", "tokens"}
    for name in names:
        value = getattr(obj, name)
        if value is None:
            continue
        kinds = int if name in whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0 or not math.isfinite(value):
            kind = "whole number" if name in whole else "number"
            raise ConfigError(f"{what}: {name} must be a positive {kind} or null, found {value!r}")


class Gate:
    """At most `places` holders at once; the others are called in the order in which they asked."""

    __slots__ = ("free", "_waiting")

    def __init__(self, places: int) -> None:
        self.free = places
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self, then: Callable[[], None]) -> bool:
        """Take a place and return True, or queue `then`, to be called with the place already taken."""
        if self.free > 0:
            self.free -= 1
            return True
        self._waiting.append(then)
        return False

    def leave(self) -> None:
        """Give the place back, or pass it to whoever waits longest."""
        if self._waiting:
            # Through the loop, so that a thousand waiters do not nest a thousand frames deep.
            asyncio.get_running_loop().call_soon(self._waiting.popleft())
        else:
            self.free += 1

    def forget(self, then: Callable[[], None]) -> bool:
        """Take a waiter out of the queue; False if it was not in it."""
        try:
            self._waiting.remove(then)
        except ValueError:
            return False
        return True


class Pace:
    """Spaces attempts evenly: `rate` a second, with up to one second's worth saved up after a pause."""

    __slots__ = ("_burst", "_gap", "_next")

    def __init__(self, rate: float) -> None:
        self._gap, self._burst = 1.0 / rate, max(1.0, rate) - 1.0
        self._next = -math.inf

    def delay(self, now: float) -> float:
        """Book the next slot and return the seconds until it (0.0: start at once)."""
        self._next = max(self._next, now - self._burst * self._gap)
        wait, self._next = max(0.0, self._next - now), self._next + self._gap
        return wait


class Breaker:
    """Counts infrastructure failures in a row; at `threshold` it opens for `cooldown` seconds, then lets one in."""

    __slots__ = ("_cooldown", "_failures", "_probing", "_threshold", "_until")

    def __init__(self, threshold: int, cooldown: float) -> None:
        self._threshold, self._cooldown = threshold, cooldown
        self._failures, self._until, self._probing = 0, -math.inf, False

    def allows(self, now: float) -> bool:
        """Say whether an attempt may start; in the half-open state exactly one may."""
        if self._failures < self._threshold:
            return True
        if now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def report(self, failed: bool, now: float) -> None:
        """Note how an allowed attempt ended."""
        self._probing = False
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= self._threshold:
            self._until = now + self._cooldown

    def withdrawn(self) -> None:
        """Note that an allowed attempt was given up before it could tell anything."""
        self._probing = False


class Deadlines:
    """Time-outs of one length, with one timer of the event loop for all of them.

    Nearly every call ends in time; it then costs an entry in a dict and no timer. As all last equally long, the oldest
    entry is always the next one due.
    """

    __slots__ = ("_loop", "_running", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        self._running: dict[Callable[[float], None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, then: Callable[[float], None]) -> None:
        """Call `then` with its deadline once that is past, unless `stop` comes first."""
        deadline = self._loop.time() + self._seconds
        self._running[then] = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._ring, deadline)

    def stop(self, then: Callable[[float], None]) -> None:
        """Forget `then`, if it still waits."""
        self._running.pop(then, None)

    def _ring(self, deadline: float) -> None:
        now, due = max(self._loop.time(), deadline), []
        self._timer = None
        for then, each in self._running.items():
            if each > now:
                self._timer = self._loop.call_at(each, self._ring, each)
                break
            due.append(then)
        for then in due:
            # One that has just been called may have ended the next.
            if then in self._running:
                then(self._running.pop(then))
