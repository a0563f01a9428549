"""Old log-probs from the engine that wrote the tokens, checked against the trainer's on a few rows of each step.

With `algorithm.rollout_correction.bypass_mode` verl takes the rollout's log-probs as the old ones and saves a forward
pass over the batch, but then also loses the figures that tell whether engine and trainer agree
(`training/rollout_probs_diff_mean` and its like) and the policy's entropy. Here they come from a sample:

    algorithm: {rollout_correction: {bypass_mode: true}}
    trainer: {toolrl: {log_prob_sample: 8}}
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from transfer_queue import KVBatchMeta

from verl_toolrl.errors import ConfigError

__all__ = ["SampledLogProbsMixin", "check_log_prob_sample"]


def check_log_prob_sample(config: DictConfig) -> int | None:
    """Return `trainer.toolrl.log_prob_sample`, the number of trajectories, or None where it is not set.

    Raises:
        ConfigError: If the option would do nothing, or the number cannot be spread over the devices.
    """
    rows = (config.trainer.get("toolrl") or {}).get("log_prob_sample")
    if rows is None:
        return None
    where = f"trainer.toolrl.log_prob_sample={rows}"
    correction = config.algorithm.get("rollout_correction")
    if not (correction and correction.get("bypass_mode", False)):
        raise ConfigError(f"{where}: has a meaning only with algorithm.rollout_correction.bypass_mode=true")
    devices = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if rows < 1 or rows % devices:
        raise ConfigError(f"{where}: wanted a multiple of the number of devices, {devices}")
    return int(rows)


class SampledLogProbsMixin:
    """Placed before a trainer of verl in the list of bases."""

    config: DictConfig

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        rows = check_log_prob_sample(self.config)
        keys = [key for key, tag in zip(batch.keys, batch.tags) if not tag.get("is_padding", False)]
        if rows is not None and len(keys) < rows:
            # A small batch, or sessions were lost: what there is, spread evenly over the devices.
            rows = len(keys) - len(keys) % (self.config.trainer.nnodes * self.config.trainer.n_gpus_per_node)
        if rows:
            correction = self.config.algorithm.rollout_correction
            correction.bypass_mode = False
            try:
                super()._compute_old_log_prob(batch.select_keys(keys[:rows]), metrics)  # type: ignore[misc]
            finally:
                correction.bypass_mode = True
        result: KVBatchMeta = super()._compute_old_log_prob(batch, metrics)  # type: ignore[misc]
        return result
