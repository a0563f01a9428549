"""Reading verl's keys of trajectories: `{uid}_{session}_{output}`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["group_of", "last_outputs", "sessions_by_group"]


def group_of(key: str) -> str:
    """Return the prompt of a trajectory."""
    return key.rsplit("_", 2)[0]


def sessions_by_group(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return the sessions of every prompt that have a trajectory; several outputs of one session are one."""
    found: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        uid, session, _ = key.rsplit("_", 2)
        found[uid].add(session)
    return dict(found)


def last_outputs(keys: Sequence[str]) -> list[int]:
    """Return the positions of the last output of every session, in their order.

    verl copies score and reported numbers of the last output to the others, so that a session is counted by its last.
    """
    last: dict[str, tuple[int, int]] = {}
    for position, key in enumerate(keys):
        session, _, output = key.rpartition("_")
        last[session] = max(last.get(session, (-1, -1)), (int(output), position))
    return sorted(position for _, position in last.values())
