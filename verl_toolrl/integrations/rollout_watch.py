"""The trainer's view of rollouts: groups that lost sessions, numbers and alarms, trajectories on disk.

    trainer:
      toolrl:
        max_lost_share: 0.3          # of a step's sessions (lost_share.py); above it the run stops with a report
        journal_steps: 50            # files of trajectories that are kept; 0 for none
        alarms: {no_call_share: 0.8} # see rollout/health.py

What a lost session means for the gradient. It has no trajectory, so nothing of it trains. The others of its group keep
training, with a baseline over those that are left; a group with fewer than two left is dropped where the estimator
compares the members of a group. Whole groups keep their gradient where verl divides the loss by the configured
mini-batch (`seq-mean-...`); with `token-mean` it is divided by the tokens that are left, so that the healthy part grows
by the share that is missing. That is unbiased only if the failure does not depend on what the model did: a server that
dies at every long query removes long queries from what is learned. The log therefore counts reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.integrations.lost_share import LostShare
from verl_toolrl.integrations.say import say
from verl_toolrl.integrations.session_keys import group_of, sessions_by_group
from verl_toolrl.integrations.step_sessions import StepSession
from verl_toolrl.integrations.trajectory_travel import TRAJECTORY, step_rewards_of
from verl_toolrl.rollout.health import Alarms, Thresholds, measure, measure_responses
from verl_toolrl.rollout.journal import Journal
from verl_toolrl.rollout.wire import loads

__all__ = ["RolloutWatch", "journal_folder"]

# Estimators of verl that look at one trajectory at a time, or only at the whole batch.
_ALONE = ("gae", "reinforce_plus_plus", "remax")


def journal_folder(config: DictConfig) -> Path:
    """Return where trajectories are written: beside the folder `checkpoints` of a run, else among the checkpoints."""
    checkpoints = Path(str(config.trainer.default_local_dir))
    return (checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints) / "trajectories"


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
        limit = options.get("max_lost_share", 0.3)
        if not isinstance(limit, (int, float)) or not 0 <= limit <= 1:
            raise ConfigError(f"trainer.toolrl.max_lost_share must lie in [0, 1], found {limit!r}")
        rollout = config.actor_rollout_ref.rollout
        self.losses = LostShare((int(rollout.n), int(rollout.val_kwargs.n)), limit)
        """Is told by the replay buffer about every prompt that is over."""
        alarms: Any = options.get("alarms")
        if OmegaConf.is_config(alarms):
            alarms = OmegaConf.to_container(alarms, resolve=True)
        self._alarms = Alarms(Thresholds.from_mapping(alarms), asked=alarms or ())
        self._journal = Journal(
            journal_folder(config),
            steps=options.get("journal_steps", 50),
            trajectories=options.get("journal_trajectories", 64),
            megabytes=options.get("journal_megabytes", 256),
        )
        self._dropped = 0

    def keep_groups(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Leave out groups that lost so many sessions that there is nothing to compare.

        Args:
            batch: What was sampled, before padding.

        Returns:
            The batch without those groups; their trajectories are gone.

        Raises:
            InfrastructureError: If no group is left.
        """
        groups = sessions_by_group(batch.keys)
        # A row may ask for a single session; that is no group, and lost nothing.
        small = {uid for uid, sessions in groups.items() if len(sessions) < 2 <= self.losses.sessions_of(uid)}
        self.losses.forget(groups)
        if not small or str(self._config.algorithm.adv_estimator) in _ALONE:
            return batch
        self._dropped += len(small)
        kept = [key for key in batch.keys if group_of(key) not in small]
        if not kept:
            step = self.losses.step
            raise InfrastructureError(
                f"no group has two sessions left; {self.losses.report('train', step.lost, step.expected)}"
            )
        tq.kv_clear(keys=[key for key in batch.keys if group_of(key) in small], partition_id=batch.partition_id)
        return batch.select_keys(kept)

    def after_step(self, sessions: Sequence[StepSession], metrics: dict[str, Any], step: int) -> dict[str, float]:
        """Return the numbers of a step, write its trajectories and say which alarms went off.

        Args:
            sessions: What was trained.
            metrics: Of the step so far.
            step: Its number.
        """
        out = self._lost_numbers(step)
        records = [_record(session) for session in sessions if TRAJECTORY in session.fields]
        infos = (session.info for session in sessions if session.info is not None)
        out.update(measure([record["trajectory"] for record in records]) or measure_responses(infos))
        audited = [record["audit"] for record in records if record["audit"] is not None]
        if records:
            out["rollout/audit_problems"] = float(sum(problems > 0 for problems in audited))
            out["rollout/audited"] = float(len(audited))
        watched = {**metrics, **out}
        # The log has it once, beside the other numbers of groups; where all are alone, it says nothing.
        if "groups/zero_variance" in watched and watched.get("groups/lone", 0.0) < 1.0:
            watched["rollout/zero_variance_share"] = watched["groups/zero_variance"]
        raised, said = self._alarms.check(watched)
        for line in said:
            say(f"step {step}: {line}")
        self._write(step, records)
        return {**out, **raised}

    def _lost_numbers(self, step: int) -> dict[str, float]:
        out: dict[str, float] = {}
        lost, expected = self.losses.step.lost, self.losses.step.expected
        if expected:
            out["rollout/lost_share"] = lost / expected
            out["rollout/lost_sessions"] = float(lost)
            out["rollout/dropped_groups"] = float(self._dropped)
        if lost:
            say(f"step {step}: {self.losses.report('train', lost, expected)}")
        self._dropped = 0
        self.losses.clear("train")
        return out

    def _write(self, step: int, records: list[dict[str, Any]]) -> None:
        try:
            self._journal.write(step, [{k: v for k, v in record.items() if k != "audit"} for record in records])
        except OSError as err:  # a full disk is no reason to end a training
            say(f"step {step}: trajectories cannot be written: {err}")

    @contextmanager
    def validation(self) -> Iterator[dict[str, float]]:
        """Count the sessions of a validation.

        verl's `acc` takes a lost one for 0, where a reward reports it; its other figures are means over the rest.

        Yields:
            Numbers for the log, filled when the block ends.
        """
        self.losses.clear("val")
        out = dict[str, float]()
        yield out
        lost, expected = self.losses.validation.lost, self.losses.validation.expected
        if expected:
            out["val-aux/lost_sessions"] = float(lost)
            out["val-aux/lost_share"] = lost / expected
        if lost:
            found = self.losses.report("val", lost, expected)
            say(f"validation: {found}; acc counts them as 0, the other figures are of those that are left")
            self.losses.stop_above_limit()


def _record(session: StepSession) -> dict[str, Any]:
    """Return the line of the journal, and beside it what the audit found."""
    return {
        "group": session.group,
        "session": session.number,
        "reward": session.score,
        "components": {name: value for name, value in (session.info or {}).items() if isinstance(value, (int, float))},
        "step_rewards": step_rewards_of(session.fields),
        "tokens": {
            "prompt": session.tag.get("prompt_len"),
            "response": session.tag.get("response_len"),
            "trained": session.trained,
        },
        "trajectory": loads(session.fields[TRAJECTORY]),
        "audit": session.fields.get("toolrl_audit"),
    }
