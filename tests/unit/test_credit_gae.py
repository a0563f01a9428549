"""Estimators with a critic: the released vectors, plain references, and limits of gamma and lambda."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from verl_toolrl.credit import (
    Steps,
    adaptive_kl_coef,
    discounted_returns,
    gae_over_steps,
    n_step_over_steps,
    ppo_loss,
    released_token_gae,
    released_token_rewards,
    step_gae,
    step_n_step,
    token_gae,
    whiten,
)
from verl_toolrl.errors import ConfigError


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "vectors" / "steptool.json").read_text())


def close(expect: Any, found: torch.Tensor) -> None:
    # The released numbers are float32, rounded to six places.
    expect = torch.as_tensor(expect, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expect, atol=1e-6, rtol=1e-6)


def test_token_gae_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["F_gae_token_level"]:
        given, expect = case["input"], case["expect"]
        mask = torch.tensor([given["mask"]])
        rewards, values = (torch.tensor([given[k]], dtype=torch.float64) for k in ("token_rewards", "values"))
        knobs = {"gamma": given["gamma"], "lam": given["lam"]}
        advantages, returns = released_token_gae(rewards, values, mask, **knobs)
        close([expect["trl_advantages_unwhitened"]], advantages)
        close([expect["trl_advantages_unwhitened_masked"]], advantages * mask)
        close([expect["trl_returns"]], returns)
        close([expect["trl_advantages_whitened"]], whiten(advantages, mask))
        close([expect["skip_observation_masked"]], token_gae(rewards, values, mask, **knobs).advantages)
        carried = token_gae(rewards, values, mask, carry=True, **knobs).advantages
        close([expect["skip_observation_advantages_unwhitened"]], carried)


def test_step_gae_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["G_gae_step_level_reference"]["cases"]:
        given, expect = case["input"], case["expect"]
        rewards, values = (torch.tensor([given[k]], dtype=torch.float64) for k in ("step_rewards", "step_values"))
        advantages, returns = gae_over_steps(rewards, values, gamma=given["gamma"], lam=given["lam"])
        close([expect["advantages"]], advantages)
        close([expect["returns"]], returns)
        close([expect["mc_returns"]], discounted_returns(rewards, gamma=given["gamma"]))


def test_the_released_trainer_repeats_the_vectors_end_to_end(vectors: dict[str, Any]) -> None:
    for case in vectors["H_end_to_end_released"]["cases"]:
        given, expect = case["input"], case["expect"]
        mask = torch.tensor([given["mask"]])
        rewards = released_token_rewards(given["mask"], given["scores"]).token_rewards.unsqueeze(0)
        close([expect["token_rewards"]], rewards)
        advantages, returns = released_token_gae(
            rewards, torch.zeros_like(rewards), mask, gamma=given["gamma"], lam=given["lam"]
        )
        close([expect["returns"]], returns)
        close([expect["advantages_whitened_masked"]], whiten(advantages, mask) * mask)


def test_the_kl_controller_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["I_adaptive_kl"]:
        value, *_ = given = dict(case["input"]), None
        assert case["expect"] == pytest.approx(adaptive_kl_coef(given[0].pop("value"), **value), abs=1e-6)
    with pytest.raises(ConfigError, match="must be positive"):
        adaptive_kl_coef(0.3, target=0, horizon=10, current_kl=1, n_steps=1)


def test_the_ppo_loss_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    names = ("old_logprobs", "logprobs", "advantages", "values", "vpreds", "returns", "mask")
    knobs = ("cliprange", "cliprange_value", "vf_coef", "ratio_threshold")
    for case in vectors["S_ppo_loss"]:
        given, expect = case["input"], case["expect"]
        found = ppo_loss(*(torch.tensor(given[n]) for n in names), **{n: given[n] for n in knobs})
        assert expect["pg_loss"] == pytest.approx(float(found.policy), abs=1e-6), case["name"]
        assert expect["vf_coef_times_vf_loss"] == pytest.approx(float(found.value), abs=1e-6), case["name"]


def test_credit_fades_through_tool_output_as_released_and_not_here() -> None:
    """Reward 1 on the last of two steps, 100 tool tokens between: the first action gets .0018 or .83."""
    mask = torch.tensor([[1, 1, *[0] * 100, 1, 1]])
    rewards = torch.zeros(1, 104)
    rewards[0, -1] = 1
    released = released_token_gae(rewards, torch.zeros(1, 104), mask, gamma=0.99, lam=0.95).advantages
    skipping = token_gae(rewards, torch.zeros(1, 104), mask, gamma=0.99, lam=0.95).advantages
    assert float(released[0, 0]) == pytest.approx(0.9405**103)  # 0.0018
    assert float(skipping[0, 0]) == pytest.approx(0.9405**3)  # 0.8319


def random_batch(seed: int, rows: int = 5, length: int = 300) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=generator) < 0.6).long()
    mask[0], mask[1] = 0, 1  # a padding row and one without tools
    rewards, values = (torch.randn(rows, length, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, mask


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9), (1.0, 0.5)])
def test_token_gae_equals_the_plain_recursion(gamma: float, lam: float) -> None:
    rewards, values, mask = random_batch(0)
    expect = torch.zeros_like(values)
    for row in range(len(mask)):
        following = value_after = 0.0
        for t in mask[row].nonzero().flatten().tolist()[::-1]:
            following = rewards[row, t] + gamma * value_after - values[row, t] + gamma * lam * following
            value_after = values[row, t]
            expect[row, t] = following
    advantages, returns = token_gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expect)
    torch.testing.assert_close(returns, (expect + values) * mask)
    assert not advantages[mask == 0].any()


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 4097])
def test_the_blocked_scan_has_no_seam(length: int) -> None:
    """Sums of rewards: gamma = lam = 1 and no critic make the advantage the number of later rewards."""
    ones = torch.ones(2, length, dtype=torch.float64)
    found = token_gae(ones, torch.zeros_like(ones), ones, gamma=1, lam=1).advantages
    assert torch.equal(torch.arange(length, 0, -1, dtype=torch.float64).expand(2, -1), found)


# A row of three steps with tool output between, one of one step, one of none.
SPANS = torch.tensor([[[0, 3], [5, 7], [8, 9]], [[1, 4], [-1, -1], [-1, -1]], [[-1, -1]] * 3])
MASK = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0], [0] * 10])
REWARDS = torch.tensor([[0.5, 0.8, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def critic(rows: int = 3, length: int = 10) -> torch.Tensor:
    return torch.arange(rows * length, dtype=torch.float32).view(rows, length) / 10


def plain_step_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    found, following, value_after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values)):
        following = reward + gamma * value_after - value + gamma * lam * following
        value_after = value
        found.append(following)
    return found[::-1]


def test_step_gae_takes_one_decision_a_step() -> None:
    values = critic()
    advantages, returns = step_gae(REWARDS, values, Steps(SPANS, MASK), gamma=0.9, lam=0.8)
    # The value before a step stands at its first token: V = .0, .5, .8 in row 0 and 1.1 in row 1.
    expect = plain_step_gae([0.5, 0.8, 1.0], [0.0, 0.5, 0.8], 0.9, 0.8)
    for (start, end), advantage, value in zip([(0, 3), (5, 7), (8, 9)], expect, [0.0, 0.5, 0.8]):
        assert [advantage] * (end - start) == pytest.approx(advantages[0, start:end].tolist())
        assert [advantage + value] * (end - start) == pytest.approx(returns[0, start:end].tolist())
    assert [1.0 - 1.1] * 3 == pytest.approx(advantages[1, 1:4].tolist(), abs=1e-6)
    assert not advantages[MASK == 0].any() and not returns[MASK == 0].any()


def test_limits_of_gamma_and_lambda() -> None:
    steps, values = Steps(SPANS, MASK), critic()
    to_the_end = step_n_step(REWARDS, values, steps, gamma=0.9)
    torch.testing.assert_close(step_gae(REWARDS, values, steps, gamma=0.9, lam=1.0), to_the_end)
    one_step = step_n_step(REWARDS, values, steps, gamma=0.9, n=1)
    torch.testing.assert_close(step_gae(REWARDS, values, steps, gamma=0.9, lam=0.0), one_step)
    blind = step_gae(REWARDS, values, steps, gamma=0.0, lam=0.7)  # only this step's reward
    torch.testing.assert_close(blind.returns, steps.to_tokens(REWARDS))
    torch.testing.assert_close(step_n_step(REWARDS, values, steps, gamma=0.9, n=99), to_the_end)


@pytest.mark.parametrize("n", [1, 2, 3, None])
def test_n_step_returns_equal_the_plain_sum(n: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    rewards, values = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    found = n_step_over_steps(rewards * mask, values, mask, gamma=0.9, n=n)
    for row, count in enumerate([6, 3, 1, 0]):
        for t in range(count):
            end = min(count, t + (n or count))
            expect = sum(0.9 ** (i - t) * float(rewards[row, i]) for i in range(t, end))
            expect += 0.9 ** (end - t) * float(values[row, end]) if end < count else 0.0
            assert float(found.returns[row, t]) == pytest.approx(expect)
            assert float(found.advantages[row, t]) == pytest.approx(expect - float(values[row, t]))
    assert not found.advantages[~mask].any()


def test_one_token_a_step_makes_step_gae_token_gae() -> None:
    rewards, values, mask = random_batch(4, length=30)
    rows = [row.nonzero().flatten() for row in mask]
    spans = torch.full((len(mask), 30, 2), -1)
    table = torch.zeros(len(mask), 30, dtype=torch.float64)
    for row, at in enumerate(rows):
        spans[row, : len(at)] = torch.stack([at, at + 1], 1)
        table[row, : len(at)] = rewards[row, at]
    found = step_gae(table, values, Steps(spans, mask), gamma=0.99, lam=0.95)
    torch.testing.assert_close(found, token_gae(rewards, values, mask, gamma=0.99, lam=0.95))


def test_returns_flow_through_the_outputs_of_a_session() -> None:
    """Three steps in one row, and the same three in two rows of one session given in the wrong order."""
    whole = step_gae(REWARDS[:1], critic(1), Steps(SPANS[:1], MASK[:1]), gamma=0.9, lam=0.8)
    spans = torch.tensor([[[8, 9], [-1, -1]], [[0, 3], [5, 7]]])
    mask = torch.tensor([[0] * 8 + [1, 0], [1, 1, 1, 0, 0, 1, 1, 0, 0, 0]])
    steps = Steps(spans, mask, session=torch.tensor([4, 4]), output_index=torch.tensor([1, 0]))
    parts = step_gae(torch.tensor([[1.0, 0.0], [0.5, 0.8]]), critic(1).expand(2, -1), steps, gamma=0.9, lam=0.8)
    torch.testing.assert_close(parts.advantages.sum(0, keepdim=True), whole.advantages)
    torch.testing.assert_close(parts.returns.sum(0, keepdim=True), whole.returns)


def test_padding_and_order_of_rows_change_nothing() -> None:
    values = critic()
    expect = step_gae(REWARDS, values, Steps(SPANS, MASK), gamma=0.9, lam=0.8)
    order = torch.tensor([2, 0, 1])
    shuffled = step_gae(REWARDS[order], values[order], Steps(SPANS[order], MASK[order]), gamma=0.9, lam=0.8)
    torch.testing.assert_close(shuffled.advantages, expect.advantages[order])
    pad = torch.nn.functional.pad
    wider = Steps(pad(SPANS, (0, 0, 0, 2), value=-1), pad(MASK, (0, 5)))
    padded = step_gae(pad(REWARDS, (0, 2)), pad(values, (0, 5), value=9.0), wider, gamma=0.9, lam=0.8)
    torch.testing.assert_close(padded.advantages[:, :10], expect.advantages)
    tokens = token_gae(values, values, MASK, gamma=0.9, lam=0.8)
    wide = token_gae(pad(values, (0, 5)), pad(values, (0, 5), value=9.0), pad(MASK, (0, 5)), gamma=0.9, lam=0.8)
    torch.testing.assert_close(wide.advantages[:, :10], tokens.advantages)


def test_what_stands_on_tool_tokens_does_not_matter() -> None:
    rewards, values, mask = random_batch(6, length=40)
    noise = torch.where(mask == 0, float("nan"), 0.0)
    found = token_gae(rewards + noise, values + noise, mask, gamma=0.99, lam=0.95)
    torch.testing.assert_close(found, token_gae(rewards, values, mask, gamma=0.99, lam=0.95))


def test_whitening_one_token_gives_zero() -> None:
    assert not whiten(torch.ones(1, 3), torch.tensor([[1, 0, 0]])).any()
    values, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    assert [-1.0, 0.0, 1.0] == pytest.approx(whiten(values, mask)[0].tolist())
    assert [1.0, 2.0, 3.0] == pytest.approx(whiten(values, mask, shift_mean=False)[0].tolist())


def test_wrong_shapes_and_steps_are_named() -> None:
    with pytest.raises(ConfigError, match="must share one shape"):
        token_gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3), gamma=1, lam=1)
    with pytest.raises(ConfigError, match="n is 0"):
        step_n_step(REWARDS, critic(), Steps(SPANS, MASK), n=0)
