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


def config(rows: int | None, *, bypass: bool = True, devices: int = 1) -> object:
    return OmegaConf.create(
        {
            "trainer": {"nnodes": 1, "n_gpus_per_node": devices, "toolrl": {"log_prob_sample": rows}},
            "algorithm": {"rollout_correction": {"bypass_mode": bypass}},
        }
    )


def test_a_sample_is_a_number_of_trajectories() -> None:
    assert 8 == check_log_prob_sample(config(8, devices=4))
    assert check_log_prob_sample(config(None, bypass=False)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(rows=8, bypass=False), "only with algorithm.rollout_correction.bypass_mode=true"),
        (dict(rows=6, devices=4), "multiple of the number of devices, 4"),
        (dict(rows=0), "multiple of the number of devices, 1"),
    ],
)
def test_a_sample_that_does_nothing_or_cannot_be_spread_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_log_prob_sample(config(**settings))


class Recorder:
    """In the place of verl's trainer: notes which rows it is asked for, and whether it computes them itself."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, int]] = []

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.asked.append((not self.config.algorithm.rollout_correction.bypass_mode, len(batch)))
        return batch


@pytest.mark.parametrize(
    ("real", "padding", "devices", "computed"),
    [(32, 0, 1, 8), (7, 1, 1, 7), (7, 1, 4, 4), (3, 1, 4, None)],
    ids=["a sample", "a small batch whole", "spread over the devices", "too few for the devices"],
)
def test_the_sample_has_no_padding_and_every_row_keeps_the_rollouts_log_probs(
    real: int, padding: int, devices: int, computed: int | None
) -> None:
    trainer = type("Trainer", (SampledLogProbsMixin, Recorder), {})()
    trainer.config = config(8, devices=devices)
    keys = [f"row{index}" for index in range(real + padding)]
    tags = [{"is_padding": index < padding} for index in range(real + padding)]
    batch = KVBatchMeta(keys=keys, tags=tags, partition_id="train")
    assert batch is trainer._compute_old_log_prob(batch, {})
    expected = [(False, real + padding)]
    assert expected == trainer.asked if computed is None else [(True, computed), *expected] == trainer.asked
