"""One mixin over verl's V1 trainers, registered as `toolrl_sync`, `toolrl_colocate_async` and `toolrl_separate_async`.

It gives what verl's registries cannot: the reward's components in the training log (verl keeps them for validation
only) and in the estimators (`estimators`), a shorter pause between two looks for finished rollouts, and a check of
every row before a model is loaded, whose answers say which components all reward workers must give.

    trainer:
      v1: {trainer_mode: toolrl_sync}
      toolrl: {poll_interval: 0.1}
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.integrations.algorithm_options import ESTIMATOR_OPTIONS
from verl_toolrl.integrations.chosen_platform import is_cpu_platform
from verl_toolrl.integrations.estimators import StepInputs, estimator_options, step_inputs
from verl_toolrl.integrations.log_probs import SampledLogProbsMixin, check_log_prob_sample
from verl_toolrl.integrations.lost_share import AnnouncingManager
from verl_toolrl.integrations.reward_info import group_metrics, training_metrics
from verl_toolrl.integrations.reward_manager import hold_workers_to, reward_from_config
from verl_toolrl.integrations.rollout_check import check_rollout
from verl_toolrl.integrations.rollout_watch import RolloutWatch
from verl_toolrl.integrations.rows import as_list, check_files, report_dropped, rows_of
from verl_toolrl.integrations.session_keys import group_of
from verl_toolrl.integrations.step_sessions import StepSessions
from verl_toolrl.integrations.trainer_options import TRAINER_OPTIONS, option_problem
from verl_toolrl.integrations.watched_buffer import watch_buffer

__all__ = ["ToolRLTrainerMixin"]

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 2.0
"""verl's pause between two looks for finished rollouts."""


class ToolRLTrainerMixin(SampledLogProbsMixin):
    """What all three trainers share. Placed before a trainer of verl in the list of bases."""

    base_mode: str
    """Name that verl's base class compares with: it tests for the text "sync" in several places."""
    config: DictConfig

    # verl stores the registered name in `trainer_mode` and branches on it; the base's own name must stand there.
    trainer_mode = property(lambda self: self.base_mode, lambda self, value: None)

    def _options(self) -> DictConfig:
        options = self.config.trainer.get("toolrl") or DictConfig({})
        plain = OmegaConf.to_container(options, resolve=True)
        assert isinstance(plain, dict)
        for key, value in ((str(key), value) for key, value in plain.items()):
            if key not in TRAINER_OPTIONS:
                raise ConfigError(
                    f"trainer.toolrl.{key}: unknown{nearest(key, TRAINER_OPTIONS)}; known: {', '.join(TRAINER_OPTIONS)}"
                )
            if problem := option_problem(key, value):
                raise ConfigError(f"trainer.toolrl.{key}: {problem}")
        return options

    def _build_replay_buffer(self) -> ReplayBuffer:
        # The first that verl's trainer does: a wrong option of ours is found here, before a model is loaded.
        poll_interval = float(self._options().get("poll_interval", 0.2))
        buffer = super()._build_replay_buffer()  # type: ignore[misc]
        # verl looks for finished rollouts every 2 seconds and has no key for it.
        buffer.poll_interval = poll_interval
        watch_buffer(buffer, self._watch.losses)
        return buffer

    @cached_property
    def _watch(self) -> RolloutWatch:
        return RolloutWatch(self.config, self._options())

    @cached_property
    def _sessions(self) -> StepSessions:
        return StepSessions()

    def fit(self, agent_loop_manager: Any) -> None:
        """Train as verl does; the count of lost sessions hears of what is started."""
        super().fit(AnnouncingManager(agent_loop_manager, self._watch.losses))  # type: ignore[misc]

    def _init_dataloader(self) -> None:
        check_log_prob_sample(self.config)
        data = self.config.data
        max_rows = {"train": data.get("train_max_samples", -1), "val": data.get("val_max_samples", -1)}
        reward = reward_from_config(self.config)
        estimator_options(self.config)
        rows = {name: check_files(as_list(data[f"{name}_files"]), reward) for name in max_rows}
        hold_workers_to(reward, self.config)
        every_row = (row for name in max_rows for row in rows_of(as_list(data[f"{name}_files"])))
        check_rollout(self.config, self.tokenizer, reward, every_row)  # type: ignore[attr-defined]
        super()._init_dataloader()  # type: ignore[misc]
        for name, dataset in (("train", self.train_dataset), ("val", self.val_dataset)):  # type: ignore[attr-defined]
            if max_rows[name] > 0:
                rows[name] = min(rows[name], max_rows[name])
            report_dropped(dataset, rows[name], self.config, where=f"data.{name}_files")

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Balance as verl does, without groups that lost their sessions.

        On the CPU the rows of a group stay together, whose shared prompt is computed once.
        """
        batch = self._watch.keep_groups(batch)
        batch = super()._balance_batch(batch, *args, **kwargs)  # type: ignore[misc]
        if is_cpu_platform():
            groups = [group_of(key) for key in batch.keys]
            first = {group: position for position, group in reversed(list(enumerate(groups)))}
            batch.reorder(sorted(range(len(groups)), key=lambda position: first[groups[position]]))
        return batch

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)  # type: ignore[misc]
        sessions = self._sessions.take(batch)
        metrics.update(training_metrics([session.info for session in sessions if session.info is not None]))
        metrics.update(group_metrics((session.group, session.score) for session in sessions))
        metrics.update(self._watch.after_step(sessions, metrics, global_steps))

    def _validate(self) -> dict[str, Any]:
        with self._watch.validation() as counts:
            metrics = super()._validate()  # type: ignore[misc]
        return {**metrics, **counts}

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Let verl compute the advantages; an estimator of ours is given the components of the rewards."""
        if str(self.config.algorithm.adv_estimator) not in ESTIMATOR_OPTIONS:
            return super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        inputs = StepInputs(
            keys=list(batch.keys),
            padding=[bool(tag.get("is_padding", False)) for tag in batch.tags],
            infos=self._sessions.infos(batch),
            rollouts=int(self.config.actor_rollout_ref.rollout.n),
        )
        with step_inputs(inputs):
            return super()._compute_advantage(batch, metrics)  # type: ignore[misc]


@register_trainer("toolrl_sync")
class ToolRLTrainerSync(ToolRLTrainerMixin, PPOTrainerSync):
    """Rollout and training take turns on the same devices."""

    base_mode = "sync"


@register_trainer("toolrl_colocate_async")
class ToolRLTrainerColocateAsync(ToolRLTrainerMixin, PPOTrainerColocateAsync):
    """The same devices, with unfinished rollouts going on in the next step."""

    base_mode = "colocate_async"


@register_trainer("toolrl_separate_async")
class ToolRLTrainerSeparateAsync(ToolRLTrainerMixin, PPOTrainerSeparateAsync):
    """Rollout and training on devices of their own."""

    base_mode = "separate_async"

    def _step_had_idle(self) -> bool:
        """Whether the step waited for rollouts longer than verl overlooks.

        verl takes its pause between two looks for that, so that a shorter pause would lend devices to the rollout
        after waits of a moment.
        """
        return bool(self._step_sample_wait_seconds > _IDLE_SECONDS)
