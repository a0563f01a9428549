"""What verl's estimators make of the step rewards that our rollouts place, as recipes/tool_agent/README.md says it."""

from __future__ import annotations

import pytest
import torch

from verl_toolrl.credit import Steps, place_step_rewards

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="needs verl")
np = pytest.importorskip("numpy")

# Two trajectories of one prompt: two steps of two tokens with a tool's answer (masked) between them. The first is paid
# for its last step, the second for its first and less.
MASK = torch.tensor([[1.0, 1, 0, 1, 1], [1, 1, 0, 1, 1]])
STEPS = Steps(torch.tensor([[[0, 2], [3, 5]], [[0, 2], [3, 5]]]), MASK)
REWARDS = torch.tensor([[0.0, 1.0], [0.25, 0.0]])


def first_and_second_step(advantages: torch.Tensor) -> list[list[float]]:
    return [[float(row[0]), float(row[3])] for row in advantages]


def test_grpo_gives_a_trajectory_one_advantage() -> None:
    placed = place_step_rewards(REWARDS, STEPS)
    uids = np.array(["a", "a"], dtype=object)
    advantages, _ = core_algos.compute_grpo_outcome_advantage(placed, MASK, uids)
    for first, second in first_and_second_step(advantages):
        assert first == second
    # The order of a trajectory's rewards makes no difference.
    turned, _ = core_algos.compute_grpo_outcome_advantage(place_step_rewards(REWARDS.flip(1), STEPS), MASK, uids)
    assert torch.equal(advantages, turned)


def test_gae_gives_a_step_what_comes_after_it() -> None:
    placed = place_step_rewards(REWARDS, STEPS)
    advantages, returns = core_algos.compute_gae_advantage_return(placed, torch.zeros_like(MASK), MASK, 1.0, 1.0)
    assert first_and_second_step(returns) == [[1.0, 1.0], [0.25, 0.0]]
    # The second trajectory's last step earned nothing, and is credited with less than its first.
    (_, (first, second)) = first_and_second_step(advantages)
    assert second < first
