"""Old log-probs from the engine that wrote the tokens, checked against the trainer's on a few rows of each step.

With `algorithm.rollout_correction.bypass_mode` verl takes the rollout's log-probs as the old ones and saves a forward
pass over the batch, but then also loses the figures that tell whether engine and trainer agree
(`training/rollout_probs_diff_mean` and its like) and the policy's entropy. Here they come from a sample:

    algorithm: {rollout_correction: {bypass_mode: true}}
    trainer: {toolrl: {log_prob_sample: 8}}
"""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig
from transfer_queue import KVBatchMeta

from verl_toolrl.errors import ConfigError

__all__ = ["SampledLogProbsMixin", "check_log_prob_sample"]


def check_log_prob_sample(config: DictConfig) -> int | None:
    """Return `trainer.toolrl.log_prob_sample`, the least number of trajectories, or None where it is not set.

    Raises:
        ConfigError: If the option would do nothing, or is no number of trajectories.
    """
    rows = (config.trainer.get("toolrl") or {}).get("log_prob_sample")
    if rows is None:
        return None
    where = f"trainer.toolrl.log_prob_sample={rows}"
    correction = config.algorithm.get("rollout_correction")
    if not (correction and correction.get("bypass_mode", False)):
        raise ConfigError(f"{where}: has a meaning only with algorithm.rollout_correction.bypass_mode=true")
    if rows < 1:
        raise ConfigError(f"{where}: wanted at least 1")
    return int(rows)


def _batch_unit(config: DictConfig) -> int:
    """Return of what a batch for log-probs must be a multiple: micro batches on all devices."""
    devices = int(config.trainer.nnodes * config.trainer.n_gpus_per_node)
    rollout = config.actor_rollout_ref.rollout
    if rollout.get("log_prob_use_dynamic_bsz", False):
        return devices
    return devices * int(rollout.get("log_prob_micro_batch_size_per_gpu") or 1)


class SampledLogProbsMixin:
    """Placed before a trainer of verl in the list of bases."""

    config: DictConfig

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        rows = check_log_prob_sample(self.config)
        if rows is not None:
            # Padding comes last: it is there where sessions were lost, has no tokens that count, and fills a micro
            # batch.
            order = sorted(range(len(batch)), key=lambda row: bool(batch.tags[row].get("is_padding", False)))
            keys = [batch.keys[row] for row in order]
            unit = _batch_unit(self.config)
            rows = min(math.ceil(rows / unit) * unit, len(keys))
        if rows:
            correction = self.config.algorithm.rollout_correction
            correction.bypass_mode = False
            try:
                super()._compute_old_log_prob(batch.select_keys(keys[:rows]), metrics)  # type: ignore[misc]
            finally:
                correction.bypass_mode = True
        result: KVBatchMeta = super()._compute_old_log_prob(batch, metrics)  # type: ignore[misc]
        return result
