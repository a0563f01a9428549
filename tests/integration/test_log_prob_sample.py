"""`trainer.toolrl.log_prob_sample`: what cannot work is refused at the start. The training that uses it is checked in
test_training_on_cpu.py, where engine and trainer must agree."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

from omegaconf import OmegaConf

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.log_probs import check_log_prob_sample


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
