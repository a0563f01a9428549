"""Counting the sessions that a run loses, and stopping it where they are too many.

A prompt is over in one of two ways. verl's replay buffer hands it to the trainer, with the trajectories of the sessions
that survived; or it evicts the prompt because it failed, and puts another in its place. Both are counted here, told by
the buffer (`watched_buffer`): a server that is down would else be refilled for ever without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import AuthorError, InfrastructureError
from verl_toolrl.integrations.lost_sessions import AUTHOR, take_lost
from verl_toolrl.integrations.session_keys import sessions_by_group

__all__ = ["AnnouncingManager", "LostShare", "Tally"]

_OWN_COUNT = "__rollout_n__"
"""Column with which a row asks for a number of sessions of its own; the worker takes it out of what it stores."""


@dataclass
class Tally:
    """Sessions that a step or a validation started, and how many of them gave nothing."""

    lost: int = 0
    expected: int = 0

    def add(self, lost: int, expected: int) -> None:
        """Add prompts that are over."""
        self.lost += lost
        self.expected += expected


class LostShare:
    """Counts the sessions of a run.

    Args:
        rollouts: Sessions of a prompt in training and in validation, where its row does not say otherwise.
        limit: Share of the sessions above which the run stops.
    """

    def __init__(self, rollouts: tuple[int, int], limit: float) -> None:
        self._rollouts = dict(zip(("train", "val"), rollouts))
        self._limit = limit
        self._own: dict[str, int] = {}
        self._reasons = {"train": Counter[str](), "val": Counter[str]()}
        # Of the failed prompts since the last batch, and of the batch that the trainer was waiting for meanwhile.
        self._failed = self._wanted = 0
        self.step = Tally()
        """Since the last `clear`, in training."""
        self.validation = Tally()

    def announce(self, batch: Any) -> None:
        """Note the rows of a batch that ask for a number of sessions of their own, before it is generated."""
        if _OWN_COUNT in batch:
            for uid, count in zip(batch["uid"], batch[_OWN_COUNT]):
                self._own[str(getattr(uid, "data", uid))] = int(getattr(count, "data", count))

    def forget(self, prompts: Iterable[str]) -> None:
        """Drop what was announced of prompts that are over."""
        for uid in prompts:
            self._own.pop(uid, None)

    def sessions_of(self, prompt: str, partition: str = "train") -> int:
        """Return how many sessions a prompt has."""
        return self._own.get(prompt, self._rollouts[partition])

    def failed(self, prompts: Collection[str], wanted: int) -> None:
        """Count prompts that are evicted because they failed, all of their sessions as lost.

        Args:
            prompts: Their uids.
            wanted: Prompts for which the trainer is waiting.

        Raises:
            InfrastructureError: If since the last batch more than `limit` of all sessions are lost.
        """
        lost = sum(map(self.sessions_of, prompts))
        self.step.add(lost, lost)
        self._failed += lost
        self._wanted = max(self._wanted, wanted * self._rollouts["train"])
        self._take_reasons("train", None)
        self._stop_above_limit("train", self._failed, self._failed + self._wanted)

    def arrived(self, partition: str, prompts: Sequence[str], keys: Iterable[str]) -> None:
        """Count the prompts of a batch.

        Args:
            partition: "train" or "val".
            prompts: Uids of all prompts, those without a trajectory included.
            keys: verl's keys of their trajectories.

        Raises:
            InfrastructureError: If there is no trajectory, or in training more than `limit` of the sessions since the
                last batch are lost.
        """
        found = sessions_by_group(keys)
        expected = sum(self.sessions_of(uid, partition) for uid in prompts)
        lost = max(0, expected - sum(map(len, found.values())))
        self.forget(uid for uid in prompts if partition == "val" or uid not in found)
        if partition == "val":
            self.validation.add(lost, expected)
            # Sessions of training may be running beside a validation; their reasons are not its own.
            self._take_reasons("val", set(prompts))
        else:
            self.step.add(lost, expected)
            self._take_reasons("train", None)
            lost, expected = lost + self._failed, max(expected, self._wanted) + self._failed
            self._failed = self._wanted = 0
            self._stop_above_limit(partition, lost, expected)
        if expected and not found:
            raise InfrastructureError(f"{_WHERE[partition]}: {self.report(partition, lost, expected)}")

    def stop_at_mistake(self, reported: Mapping[str, Mapping[str, Any]]) -> None:
        """Stop the run if a session that ended without a trajectory shows an author's mistake.

        Args:
            reported: Sessions and their tags, as `report_lost` leaves them.

        Raises:
            AuthorError: With the text of the first one.
        """
        for session, tag in reported.items():
            if tag.get("kind") == AUTHOR:
                raise AuthorError(f"session {session} of step {tag.get('global_steps')}: {tag.get('reason')}")

    def stop_above_limit(self) -> None:
        """Stop a run whose validation lost too much, when the validation is over."""
        self._stop_above_limit("val", self.validation.lost, self.validation.expected)

    def clear(self, partition: str) -> None:
        """Begin a new step or a new validation."""
        if partition == "val":
            self.validation = Tally()
        else:
            self.step = Tally()
        self._reasons[partition].clear()

    def report(self, partition: str, lost: int, expected: int) -> str:
        """Return a sentence with the most frequent reasons."""
        reasons = "; ".join(f"{count} x {reason}" for reason, count in self._reasons[partition].most_common(5))
        return (
            f"{lost} of {expected} sessions are lost (trainer.toolrl.max_lost_share={self._limit}). "
            f"Reasons since the last step: {reasons or 'none reported; see the errors of the agent loop workers'}"
        )

    def _stop_above_limit(self, partition: str, lost: int, expected: int) -> None:
        if lost > self._limit * expected:
            raise InfrastructureError(f"{_WHERE[partition]}: {self.report(partition, lost, expected)}")

    def _take_reasons(self, partition: str, prompts: Collection[str] | None) -> None:
        found = take_lost(prompts)
        self.stop_at_mistake(found)
        for tag in found.values():
            self._reasons[partition][str(tag.get("reason", "?"))[:120]] += 1


_WHERE = {"train": "this step", "val": "validation"}


class AnnouncingManager:
    """verl's agent loop manager, which tells a count how many sessions are started.

    All that the trainer generates goes through it, training, validation and what a checkpoint takes up again.
    """

    def __init__(self, manager: Any, losses: LostShare) -> None:
        self._manager, self._losses = manager, losses

    def generate_sequences(self, prompts: Any) -> Any:
        """Start the sessions of a batch."""
        self._losses.announce(prompts)
        return self._manager.generate_sequences(prompts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)
