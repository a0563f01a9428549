"""`trainer.toolrl.log_prob_sample`: what cannot work is refused at the start. The training that uses it is checked in
test_training_on_cpu.py, where engine and trainer must agree."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.log_probs import SampledLogProbsMixin, check_log_prob_sample


def config(rows: int | None, *, bypass: bool = True, devices: int = 1, micro: int = 1) -> object:
    return OmegaConf.create(
        {
            "trainer": {"nnodes": 1, "n_gpus_per_node": devices, "toolrl": {"log_prob_sample": rows}},
            "algorithm": {"rollout_correction": {"bypass_mode": bypass}},
            "actor_rollout_ref": {"rollout": {"log_prob_micro_batch_size_per_gpu": micro}},
        }
    )


def test_a_sample_is_a_number_of_trajectories() -> None:
    assert 8 == check_log_prob_sample(config(8, devices=4))
    assert check_log_prob_sample(config(None, bypass=False)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(rows=8, bypass=False), "only with algorithm.rollout_correction.bypass_mode=true"),
        (dict(rows=0), "wanted at least 1"),
    ],
)
def test_a_sample_that_does_nothing_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_log_prob_sample(config(**settings))


class Recorder:
    """In the place of verl's trainer: notes which rows it is asked for, and whether it computes them itself."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, list[str]]] = []

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.asked.append((not self.config.algorithm.rollout_correction.bypass_mode, list(batch.keys)))
        return batch


@pytest.mark.parametrize(
    ("real", "padding", "devices", "micro", "rows", "filled"),
    [
        (32, 0, 1, 4, 8, 0),
        (32, 0, 4, 4, 16, 0),
        (3, 5, 1, 4, 3, 5),  # 8 rows asked for, 3 sessions survived
        (9, 7, 4, 1, 8, 0),
        (6, 10, 1, 8, 6, 2),
        (3, 1, 4, 1, 3, 1),
    ],
    ids=["a sample", "spread", "lost sessions", "no padding needed", "padding fills a micro batch", "a small batch"],
)
def test_the_sample_fills_micro_batches_with_padding_last(
    real: int, padding: int, devices: int, micro: int, rows: int, filled: int
) -> None:
    trainer = type("Trainer", (SampledLogProbsMixin, Recorder), {})()
    trainer.config = config(8, devices=devices, micro=micro)
    # verl's balancing may leave padding anywhere; here it comes first.
    keys = [f"pad{index}" for index in range(padding)] + [f"row{index}" for index in range(real)]
    tags = [{"is_padding": index < padding} for index in range(real + padding)]
    batch = KVBatchMeta(keys=keys, tags=tags, partition_id="train")
    assert batch is trainer._compute_old_log_prob(batch, {})
    computed = [f"row{index}" for index in range(rows)] + [f"pad{index}" for index in range(filled)]
    # Every row keeps the log-probs of its rollout.
    assert [(True, computed), (False, keys)] == trainer.asked
