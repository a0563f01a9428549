"""The trainer's view of rollouts: groups that lost sessions, numbers and alarms, trajectories on disk.

    trainer:
      toolrl:
        max_lost_share: 0.3          # of a step's sessions; above it the run stops with a report
        journal_steps: 50            # files of trajectories that are kept; 0 for none
        alarms: {no_call_share: 0.8} # see rollout/health.py

What a lost session means for the gradient. It has no trajectory, so nothing of it trains. The others of its group keep
training, with a baseline over those that are left; a group with fewer than two left is dropped where the estimator
compares the members of a group. That is unbiased only if the failure does not depend on what the model did: a server
that dies at every long query removes long queries from what is learned. The log therefore counts reasons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.integrations.lost_sessions import take_lost
from verl_toolrl.integrations.say import say
from verl_toolrl.integrations.trajectory_travel import TRAJECTORY, step_rewards_of
from verl_toolrl.rollout.health import Alarms, Thresholds, measure, zero_variance_share
from verl_toolrl.rollout.journal import Journal
from verl_toolrl.rollout.wire import loads

__all__ = ["RolloutWatch", "journal_folder", "small_groups"]

# Estimators of verl that look at one trajectory at a time, or only at the whole batch.
_ALONE = ("gae", "reinforce_plus_plus", "remax")


def journal_folder(config: DictConfig) -> Path:
    """Return where trajectories are written: beside the folder `checkpoints` of a run, else among the checkpoints."""
    checkpoints = Path(str(config.trainer.default_local_dir))
    return (checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints) / "trajectories"


def small_groups(keys: Sequence[str], least: int) -> set[str]:
    """Return the groups that have fewer than `least` sessions left.

    Args:
        keys: verl's `{uid}_{session}_{output}`.
        least: Sessions that a group needs.
    """
    sessions = _sessions(keys)
    return {uid for uid, numbers in sessions.items() if len(numbers) < least}


def _sessions(keys: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        uid, session, _ = key.rsplit("_", 2)
        found[uid].add(session)
    return found


class RolloutWatch:
    """Called by the trainer after it has sampled, after each step and around validation.

    Args:
        config: The trainer's whole configuration.
        options: `trainer.toolrl`.

    Raises:
        ConfigError: If an option is out of range.
    """

    def __init__(self, config: DictConfig, options: DictConfig) -> None:
        self._config = config
        self.max_lost_share = options.get("max_lost_share", 0.3)
        if not isinstance(self.max_lost_share, (int, float)) or not 0 <= self.max_lost_share <= 1:
            raise ConfigError(f"trainer.toolrl.max_lost_share must lie in [0, 1], found {self.max_lost_share!r}")
        alarms: Any = options.get("alarms")
        if OmegaConf.is_config(alarms):
            alarms = OmegaConf.to_container(alarms, resolve=True)
        self._alarms = Alarms(Thresholds.from_mapping(alarms))
        self._journal = Journal(
            journal_folder(config),
            steps=options.get("journal_steps", 50),
            trajectories=options.get("journal_trajectories", 64),
            megabytes=options.get("journal_megabytes", 256),
        )
        self._lost = 0
        self._expected = 0
        self._dropped = 0
        self._reasons: Counter[str] = Counter()

    def keep_groups(self, batch: KVBatchMeta, groups: int) -> KVBatchMeta:
        """Count lost sessions and leave out groups that are too small to compare.

        Args:
            batch: What was sampled, before padding.
            groups: Prompts that were asked for.

        Returns:
            The batch without those groups; their trajectories are gone.

        Raises:
            InfrastructureError: If more than `max_lost_share` of the sessions are lost, or no group is left.
        """
        rollouts = int(self._config.actor_rollout_ref.rollout.n)
        expected = groups * rollouts
        lost = max(0, expected - sum(map(len, _sessions(batch.keys).values())))
        self._expected, self._lost = self._expected + expected, self._lost + lost
        self._note_reasons()
        self._stop_above_share("this step", lost, expected)
        if not lost or rollouts < 2 or str(self._config.algorithm.adv_estimator) in _ALONE:
            return batch
        small = small_groups(batch.keys, 2)
        if not small:
            return batch
        self._dropped += len(small)
        kept = [key for key in batch.keys if key.rsplit("_", 2)[0] not in small]
        if not kept:
            raise InfrastructureError(f"no group has two sessions left; {self._report(lost, expected)}")
        tq.kv_clear(keys=[key for key in batch.keys if key not in set(kept)], partition_id=batch.partition_id)
        return batch.select_keys(kept)

    def _note_reasons(self) -> None:
        for tag in take_lost().values():
            self._reasons[str(tag.get("reason", "?"))[:120]] += 1

    def _stop_above_share(self, where: str, lost: int, expected: int) -> None:
        if lost > self.max_lost_share * expected:
            raise InfrastructureError(f"{where}: {self._report(lost, expected)}")

    def _report(self, lost: int, expected: int) -> str:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in self._reasons.most_common(5))
        return (
            f"{lost} of {expected} sessions are lost (trainer.toolrl.max_lost_share={self.max_lost_share}). "
            f"Reasons since the last step: {reasons or 'none reported; see the errors of the agent loop workers'}"
        )

    def after_step(self, batch: KVBatchMeta, metrics: dict[str, Any], step: int) -> dict[str, float]:
        """Return the numbers of a step, write its trajectories and say which alarms went off.

        Args:
            batch: The trained batch.
            metrics: Of the step so far.
            step: Its number.
        """
        out: dict[str, float] = {}
        if self._expected:
            out["rollout/lost_share"] = self._lost / self._expected
            out["rollout/lost_sessions"] = float(self._lost)
            out["rollout/dropped_groups"] = float(self._dropped)
        if self._lost:
            say(f"step {step}: {self._report(self._lost, self._expected)}")
        self._lost = self._expected = self._dropped = 0
        self._reasons.clear()
        records, scores = self._records(batch)
        out.update(measure([record["trajectory"] for record in records]))
        audited = [record["audit"] for record in records if record["audit"] is not None]
        if records:
            out["rollout/audit_problems"] = float(sum(problems > 0 for problems in audited))
            out["rollout/audited"] = float(len(audited))
        same = zero_variance_share(scores)
        if same is not None:
            out["rollout/zero_variance_share"] = same
        raised, said = self._alarms.check({**metrics, **out})
        for line in said:
            say(f"step {step}: {line}")
        self._write(step, records)
        return {**out, **raised}

    def _write(self, step: int, records: list[dict[str, Any]]) -> None:
        try:
            self._journal.write(step, [{k: v for k, v in record.items() if k != "audit"} for record in records])
        except OSError as err:  # a full disk is no reason to end a training
            say(f"step {step}: trajectories cannot be written: {err}")

    def _records(self, batch: KVBatchMeta) -> tuple[list[dict[str, Any]], list[tuple[str, float]]]:
        """Read the trajectories of a batch; empty for loops that record none. Scores come for all of them."""
        keys = [key for key, tag in zip(batch.keys, batch.tags) if not tag.get("is_padding", False)]
        if not keys:
            return [], []
        wanted = ["extra_fields", "rm_scores", "response_mask"]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=wanted)
        scores = [float(row.sum()) for row in data["rm_scores"].unbind()]
        trained = [int(row.sum()) for row in data["response_mask"].unbind()]
        tags = dict(zip(batch.keys, batch.tags))
        records = []
        for key, fields, score, count in zip(keys, list(data["extra_fields"]), scores, trained):
            fields = getattr(fields, "data", fields)
            if TRAJECTORY not in fields:
                continue
            uid, session, _ = key.rsplit("_", 2)
            info = fields.get("reward_extra_info") or {}
            records.append(
                {
                    "group": uid,
                    "session": int(session),
                    "reward": score,
                    "components": {name: value for name, value in info.items() if isinstance(value, (int, float))},
                    "step_rewards": step_rewards_of(fields),
                    "tokens": {
                        "prompt": tags[key].get("prompt_len"),
                        "response": tags[key].get("response_len"),
                        "trained": count,
                    },
                    "trajectory": loads(fields[TRAJECTORY]),
                    "audit": fields.get("toolrl_audit"),
                }
            )
        return records, [(key.rsplit("_", 2)[0], score) for key, score in zip(keys, scores)]

    @contextmanager
    def validation(self, buffer: Any) -> Iterator[dict[str, float]]:
        """Count the sessions of a validation, whose figures verl computes as if a lost one had scored 0.

        Args:
            buffer: The trainer's replay buffer; while the block runs its `sample` counts.

        Yields:
            Numbers for the log, filled when the block ends.
        """
        rollouts = int(self._config.actor_rollout_ref.rollout.val_kwargs.n)
        counts, out = {"expected": 0, "lost": 0}, dict[str, float]()
        sample = buffer.sample

        def counting(*, batch_size: int, **more: Any) -> Any:
            batch, metrics = sample(batch_size=batch_size, **more)
            expected = batch_size * rollouts
            counts["expected"] += expected
            counts["lost"] += max(0, expected - sum(map(len, _sessions(batch.keys).values())))
            if not batch.keys:
                self._note_reasons()
                raise InfrastructureError(f"validation: {self._report(expected, expected)}")
            return batch, metrics

        buffer.sample = counting
        try:
            yield out
        finally:
            buffer.sample = sample
        self._note_reasons()
        lost, expected = counts["lost"], counts["expected"]
        if expected:
            out["val-aux/lost_sessions"] = float(lost)
            out["val-aux/lost_share"] = lost / expected
        if lost:
            say(f"validation: {self._report(lost, expected)}; its figures count them as 0")
            self._stop_above_share("validation", lost, expected)
            self._reasons.clear()
