"""The rows of smoke runs are reproducible and earn the maximum against themselves."""

from __future__ import annotations

from verl_toolrl.data.rlla import rl_row
from verl_toolrl.data.sample_task import sample_rows
from verl_toolrl.rewards import make_reward
from verl_toolrl.schema import validate_row


def test_the_same_seed_gives_the_same_rows() -> None:
    assert sample_rows(20, seed=3) == sample_rows(20, seed=3)
    assert sample_rows(20, seed=3) != sample_rows(20, seed=4)


def test_every_row_is_valid_and_earns_the_maximum_against_itself() -> None:
    reward = make_reward("toolrl", mode="released")
    for index, raw in enumerate(sample_rows(50, seed=1)):
        row = rl_row(raw, index=index)
        validate_row(row)
        assert 4.0 == reward(response=raw["output"], ground_truth=row["reward_model"]["ground_truth"]).score
