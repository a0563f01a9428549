"""Sessions that end without a trajectory: counted where they happen, reported to the trainer through TransferQueue.

verl's layout has no place for a session without a trajectory, so the worker leaves a tag of its own in a partition that
verl does not read; the trainer collects and clears it after each step. What infrastructure lost is counted there. An
author's mistake stops the run: verl logs the error of a session in the worker and goes on, and so would the mistake.
That of a reward, which scores in a worker of its own, is reported from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import ray
import transfer_queue as tq

from verl_toolrl.errors import AuthorError, InfrastructureError
from verl_toolrl.integrations.say import say_at_first

__all__ = [
    *("AUTHOR", "PARTITION"),
    *("Group", "Groups"),
    *("report_lost", "report_reward_error", "reported_errors", "take_lost"),
]

PARTITION = "toolrl_lost"
"""Partition of TransferQueue; a key a lost session, the tag says why."""

AUTHOR = "author"
"""`kind` of a session that an author's mistake ended; `infrastructure` of the others."""

_CODE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(NotImplementedError, TypeError, ValueError),
)
"""What a wrong line of a user's reward raises, an `AuthorError` among them. Others come from what it asks: `OSError`,
which some errors of HTTP clients are beside a `ValueError`, and what else those raise."""


class Group:
    """The sessions of one prompt that this process runs; verl runs all of a prompt in one."""

    def __init__(self) -> None:
        self.started = self.ended = self.lost = 0

    def all_lost_with_this_one(self) -> bool:
        """Note that a session is lost; True if it is the last to end and none before it gave a trajectory."""
        self.lost += 1
        return self.lost == self.started and self.ended == self.started - 1


class Groups:
    """Counts the sessions of each prompt as long as some of them run.

    verl starts all sessions of a prompt before any of them can end, so a count at the end of one is the whole count.
    """

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    @contextmanager
    def session(self, uid: str) -> Iterator[Group]:
        """Count one session in and out."""
        group = self._groups.setdefault(uid, Group())
        group.started += 1
        try:
            yield group
        finally:
            group.ended += 1
            if group.ended == group.started:
                self._groups.pop(uid, None)


async def report_lost(session: str, reason: str, step: int, kind: str = "infrastructure") -> None:
    """Leave word of a lost session; says nothing where TransferQueue does not run."""
    if not _attached():
        return
    try:
        tag = {"reason": reason[:2000], "global_steps": step, "kind": kind}
        await tq.async_kv_put(key=session, partition_id=PARTITION, tag=tag)
    except Exception as err:  # a report must never turn a lost session into a lost run
        say_at_first("report", f"could not report the lost session {session}: {type(err).__name__}: {err}")


def _attached() -> bool:
    """Attach this process to the run's TransferQueue, where there is one; a put by itself would start another."""
    try:
        tq.get_client()
        return True
    except AssertionError:
        pass
    if not ray.is_initialized():  # asking for an actor would start it
        return False
    try:
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:  # a run without TransferQueue
        return False
    tq.init()
    return True


@asynccontextmanager
async def reported_errors(row: Mapping[str, Any]) -> AsyncIterator[None]:
    """Report what ends the session inside: an author's mistake, so that the trainer stops, or the engine's error.

    An `InfrastructureError` is reported where it is met, as its session may have an end of its own.

    Args:
        row: What an agent loop is given: columns of the row, `uid`, `session_id` and `global_steps`.
    """
    try:
        yield
    except InfrastructureError:
        raise
    except Exception as err:
        await _report(row, err, AUTHOR if isinstance(err, AuthorError) else "infrastructure")
        raise


async def report_reward_error(row: Mapping[str, Any], err: Exception) -> None:
    """Report what a reward raised: a mistake in it, so that the trainer stops, or that something was out of reach.

    Args:
        row: As for `reported_errors`.
        err: The error.
    """
    mistake = isinstance(err, _CODE_ERRORS) and not isinstance(err, OSError)
    await _report(row, err, AUTHOR if mistake else "infrastructure", "the reward raised ")


async def _report(row: Mapping[str, Any], err: Exception, kind: str, what: str = "") -> None:
    session = f"{row.get('uid', '')}_{int(row.get('session_id', 0))}"
    await report_lost(session, f"{what}{type(err).__name__}: {err}", int(row.get("global_steps", 0) or 0), kind)


def take_lost(prompts: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return and clear what was reported: session -> tag.

    Args:
        prompts: Whose sessions; None for all.
    """
    found = (tq.kv_list(partition_id=PARTITION) or {}).get(PARTITION, {})
    if prompts is not None:
        found = {session: tag for session, tag in found.items() if session.rpartition("_")[0] in prompts}
    if found:
        tq.kv_clear(keys=list(found), partition_id=PARTITION)
    return found
