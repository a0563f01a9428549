"""Our estimators against verl's own, on the cases where they must agree."""

from __future__ import annotations

import pytest
import torch

from verl_toolrl.credit import (
    Steps,
    adaptive_kl_coef,
    group_ids,
    outcome_advantages,
    place_step_rewards,
    return_to_go_advantages,
    token_gae,
    whiten,
)

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="needs verl")
np = pytest.importorskip("numpy")


def one_step_batch(seed: int, rows: int = 12, length: int = 9) -> tuple[torch.Tensor, Steps]:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = (torch.arange(length) < ends.unsqueeze(1)).float()
    spans = torch.stack([torch.zeros_like(ends), ends], 1).unsqueeze(1)
    return torch.rand(rows, 1, generator=generator), Steps(spans, mask)


@pytest.mark.parametrize("std", [True, False], ids=["std", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_one_step_a_trajectory_equals_grpo(seed: int, std: bool) -> None:
    rewards, steps = one_step_batch(seed)
    # Groups of five, four and two, and one that is alone; two groups have equal rewards in part.
    uids = np.array([*["a"] * 5, *["b"] * 4, *["c"] * 2, "d"], dtype=object)
    rewards[9:11] = 0.5
    placed = place_step_rewards(rewards, steps)
    expect, _ = core_algos.compute_grpo_outcome_advantage(
        placed, steps.response_mask, uids, norm_adv_by_std_in_grpo=std
    )
    knobs = {"baseline": "mean", "normalise": "std" if std else "none"}
    for estimate in (return_to_go_advantages, outcome_advantages):
        found = estimate(rewards, steps, group_ids(uids), **knobs).advantages
        torch.testing.assert_close(found, expect, atol=1e-6, rtol=1e-6)


def test_leave_one_out_outcomes_equal_rloo() -> None:
    rewards, steps = one_step_batch(7)
    uids = np.array(["a", "b", "c"] * 4, dtype=object)
    placed = place_step_rewards(rewards, steps)
    expect, _ = core_algos.compute_rloo_outcome_advantage(placed, steps.response_mask, uids)
    found = outcome_advantages(rewards, steps, group_ids(uids), baseline="leave_one_out", normalise="none")
    torch.testing.assert_close(found.advantages, expect, atol=1e-6, rtol=1e-6)


def test_token_gae_equals_verl_s_gae() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(16, 200, generator=generator) < 0.6).float()
    rewards, values = (torch.randn(16, 200, generator=generator) for _ in range(2))
    expect, expect_returns = core_algos.compute_gae_advantage_return(rewards, values, mask, 0.99, 0.95)
    found, returns = token_gae(rewards, values, mask, gamma=0.99, lam=0.95)
    torch.testing.assert_close(whiten(found, mask) * mask, expect * mask, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(returns, expect_returns * mask, atol=1e-4, rtol=1e-4)
    double = token_gae(rewards.double(), values.double(), mask, gamma=0.99, lam=0.95).advantages
    reference, _ = core_algos.compute_gae_advantage_return(rewards.double(), values.double(), mask.double(), 0.99, 0.95)
    torch.testing.assert_close(whiten(double, mask) * mask, reference * mask, atol=1e-10, rtol=1e-10)


def test_dense_step_rewards_survive_verl_s_gae() -> None:
    """verl's gae drops rewards on masked tokens; `robust` puts none there, so it sees the whole reward."""
    mask = torch.tensor([[1.0, 1, 0, 0, 1, 0, 1, 1]])
    steps = Steps(torch.tensor([[[0, 3], [4, 6], [6, 8]]]), mask)  # two spans end on a masked token
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    seen = {}
    for scheme in ("paper", "robust"):
        placed = place_step_rewards(rewards, steps, scheme=scheme)
        _, returns = core_algos.compute_gae_advantage_return(placed, torch.zeros_like(mask), mask, 1.0, 1.0)
        seen[scheme] = float(returns[0, 0])
    assert seen == {"paper": 4.0, "robust": 7.0}


def test_the_kl_controller_equals_verl_s() -> None:
    theirs = core_algos.AdaptiveKLController(0.3, 6, 10000)
    theirs.update(8.0, 64)
    ours = adaptive_kl_coef(0.3, target=6, horizon=10000, current_kl=8.0, n_steps=64)
    assert theirs.value == pytest.approx(ours)


def test_the_aggregation_that_keeps_the_gradient_unbiased_is_verl_s_seq_mean_token_sum() -> None:
    """The estimator needs a loss without token counts; that is this mode, and not the default one."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([[2], [6], [4]])).float()
    loss = torch.randn(3, 6, generator=generator)
    expect = (loss * mask).sum() / 3
    torch.testing.assert_close(core_algos.agg_loss(loss, mask, "seq-mean-token-sum"), expect)
    assert not torch.isclose(core_algos.agg_loss(loss, mask, "token-mean"), expect)
