"""Estimators with a critic: GAE over tokens, GAE and n-step advantages over steps.

GAE (Schulman et al. 2016, arXiv:1506.02438) is `A_t = sum_l (gamma lam)^l delta_{t+l}` with
`delta_t = r_t + gamma V_{t+1} - V_t`; the estimators differ in what one tick of t is:

    token_gae            a policy token; tool tokens are skipped, as verl's `gae` does
    released_token_gae   any token, tool output included (trl 0.10.1, on which StepTool was released): credit fades by
                         gamma lam for every token that a tool wrote, and each step bootstraps from 0
    step_gae             a step: one decision, one value, one discount (StepTool, arXiv:2410.07745v4, section on
                         step-grained optimisation); all policy tokens of step t share A_t
    step_n_step          a step, `A_t = sum_{i<n} gamma^i r_{t+i} + gamma^n V_{t+n} - V_t`; n = None runs to the end

Nothing here whitens unless asked: `whiten` is separate, because step estimators and the released trainer whiten over
different things. The functions named `*_over_steps` work on `(rows, steps)` tables, without tokens.
"""

from __future__ import annotations

import torch

from verl_toolrl.credit.steps import Advantages, Steps
from verl_toolrl.errors import ConfigError

__all__ = [
    "discounted_returns",
    "gae_over_steps",
    "n_step_over_steps",
    "released_token_gae",
    "step_gae",
    "step_n_step",
    "token_gae",
    "whiten",
]


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Shift and scale by mean and unbiased variance over the mask: `(x - mean) / sqrt(var + 1e-8)`, at every position.

    As trl and verl do; positions with mask 0 are transformed too, so multiply by the mask afterwards. With fewer than
    two masked positions there is no variance, and the result is 0.

    Args:
        values: Any shape.
        mask: The same shape.
        shift_mean: False adds the mean again after scaling.
    """
    mask = mask.to(values.dtype)
    count = mask.sum()
    if float(count) < 2:
        return torch.zeros_like(values)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / (count - 1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def token_gae(
    token_level_rewards: torch.Tensor,
    values: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    gamma: float,
    lam: float,
    carry: bool = False,
) -> Advantages:
    """GAE over policy tokens only: the next token of the policy follows this one, whatever a tool wrote in between.

    Equals verl's `gae` before whitening on all policy tokens, by packing them to the left and one blocked scan instead
    of a Python loop over positions. Every row is a trajectory of its own, as in verl; `step_gae` joins the outputs of a
    session.

    Args:
        token_level_rewards: `(batch, response_length)`; rewards on tokens with mask 0 are dropped, as in verl.
        values: `(batch, response_length)`; the critic's value of the context before each token.
        response_mask: `(batch, response_length)`; 1 on policy tokens.
        gamma: Discount per policy token.
        lam: Lambda of GAE.
        carry: Leave on tokens with mask 0 what verl's loop leaves there (the advantage of the next policy token)
            instead of 0; for comparison with it.

    Returns:
        Advantages, not whitened; returns are `A + V`.
    """
    _same_shape(token_level_rewards, values, response_mask)
    trained = response_mask.ne(0)
    length = trained.shape[1]
    rank = trained.cumsum(1) - trained.to(torch.int64)  # number of policy tokens before this one
    slot = torch.where(trained, rank, length)  # tokens of tools go to a slot of their own, which is cleared
    rewards, packed = (
        torch.zeros(len(trained), length + 1, dtype=values.dtype, device=values.device).scatter_(1, slot, x)
        for x in (token_level_rewards.to(values.dtype), values)
    )
    rewards[:, length] = packed[:, length] = 0
    delta = rewards[:, :length].add_(packed[:, 1:], alpha=gamma).sub_(packed[:, :length])
    advantages = _reverse_scan(delta, gamma * lam).gather(1, rank)
    if not carry:
        advantages = torch.where(trained, advantages, torch.zeros_like(advantages))
    return Advantages(advantages, torch.where(trained, advantages + values, torch.zeros_like(values)))


def released_token_gae(
    token_level_rewards: torch.Tensor, values: torch.Tensor, response_mask: torch.Tensor, *, gamma: float, lam: float
) -> Advantages:
    """GAE of the released trainer: rewards and values are zeroed where the mask is 0, then every position is one tick.

    Returns:
        Unwhitened values at *all* positions, tool tokens included, as released; the released trainer then applies
        `whiten` over the mask and multiplies by it.
    """
    _same_shape(token_level_rewards, values, response_mask)
    mask = response_mask.to(values.dtype)
    values = values * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = token_level_rewards.to(values.dtype) * mask + gamma * following - values
    advantages = _reverse_scan(delta, gamma * lam)
    return Advantages(advantages, advantages + values)


def _same_shape(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> None:
    if not rewards.shape == values.shape == mask.shape or mask.dim() != 2:
        raise ConfigError(
            f"token_level_rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and response_mask "
            f"{tuple(mask.shape)} must share one shape (batch, response_length)"
        )


def _reverse_scan(x: torch.Tensor, decay: float, block: int = 64) -> torch.Tensor:
    """Return `y_t = x_t + decay * y_{t+1}` along dimension 1.

    Blocks of 64 positions are one product with a triangular matrix of powers of `decay`; what flows from block to block
    is the same recursion, 64 times shorter.
    """
    rows, length = x.shape
    if length == 0:
        return x
    blocks = -(-length // block)
    x = torch.nn.functional.pad(x, (0, blocks * block - length)).view(rows, blocks, block)
    ticks = torch.arange(block, device=x.device)
    powers = torch.as_tensor(decay, dtype=torch.float64) ** torch.arange(block + 1, dtype=torch.float64)
    powers = powers.to(x.device, x.dtype)
    distance = ticks.unsqueeze(1) - ticks
    y = x @ torch.where(distance >= 0, powers[distance.clamp(min=0)], 0)
    if blocks > 1:
        heads = _reverse_scan(y[:, :, 0], decay**block, block)
        y[:, :-1].addcmul_(heads[:, 1:, None], powers[block - ticks])
    return y.view(rows, blocks * block)[:, :length]


def gae_over_steps(
    step_rewards: torch.Tensor,
    step_values: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    gamma: float,
    lam: float,
) -> Advantages:
    """GAE with one tick a step: `delta_t = r_t + gamma V_{t+1} - V_t`, `V_T = 0`, `A_t = delta_t + gamma lam A_{t+1}`.

    Args:
        step_rewards: `(rows, steps)`.
        step_values: `(rows, steps)`; the value before each step.
        mask: `(rows, steps)` bool; steps first, padding last. None: no padding.
        gamma: Discount per step.
        lam: Lambda of GAE; 1 is the return to the end minus the value.

    Returns:
        `(rows, steps)` advantages and returns `A + V`, 0 on padding.
    """
    keep = torch.ones_like(step_rewards) if mask is None else mask.to(step_rewards.dtype)
    values = step_values.to(step_rewards.dtype) * keep
    advantages = torch.zeros_like(step_rewards)
    following = value_after = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    for t in reversed(range(step_rewards.shape[1])):
        delta = step_rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * keep[:, t]
        value_after = values[:, t]
        advantages[:, t] = following
    return Advantages(advantages, advantages + values)


def n_step_over_steps(
    step_rewards: torch.Tensor,
    step_values: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    gamma: float,
    n: int | None = None,
) -> Advantages:
    """N-step advantage over steps: `sum_{i<n} gamma^i r_{t+i} + gamma^n V_{t+n} - V_t`, where nothing follows the end.

    Args:
        step_rewards: `(rows, steps)`.
        step_values: `(rows, steps)`.
        mask: `(rows, steps)` bool. None: no padding.
        gamma: Discount per step.
        n: Steps before the critic takes over; None: the end of the trajectory (the form in the paper).

    Raises:
        ConfigError: If n is smaller than 1.
    """
    if n is not None and n < 1:
        raise ConfigError(f"n-step advantage: n is {n}, wanted at least 1")
    keep = torch.ones_like(step_rewards) if mask is None else mask.to(step_rewards.dtype)
    rewards, values = step_rewards * keep, step_values.to(step_rewards.dtype) * keep
    width = rewards.shape[1]
    reach = width if n is None else min(n, width)

    def later(x: torch.Tensor, by: int) -> torch.Tensor:
        return torch.nn.functional.pad(x[:, by:], (0, by))

    returns = gamma**reach * later(values, reach)
    for i in range(reach):
        returns = returns + gamma**i * later(rewards, i)
    returns = returns * keep
    return Advantages(returns - values, returns)


def discounted_returns(
    step_rewards: torch.Tensor, mask: torch.Tensor | None = None, *, gamma: float = 1.0
) -> torch.Tensor:
    """Return-to-go `G_t = r_t + gamma G_{t+1}` over `(rows, steps)`, 0 on padding."""
    return n_step_over_steps(step_rewards, torch.zeros_like(step_rewards), mask, gamma=gamma).returns


def step_gae(
    step_rewards: torch.Tensor, values: torch.Tensor, steps: Steps, *, gamma: float = 1.0, lam: float = 1.0
) -> Advantages:
    """GAE with one decision a step, on tokens.

    Args:
        step_rewards: `(batch, max_steps)`.
        values: `(batch, response_length)`; a step's value is the one at its first token.
        steps: Spans and mask; a session's outputs are one trajectory.
        gamma: Discount per step.
        lam: Lambda per step.

    Returns:
        `(batch, response_length)`: every policy token of step t has A_t and the return `A_t + V_t`, so that a critic
        trained on all tokens of a step learns the value before it.

    Raises:
        ConfigError: If shapes disagree, or there are fewer or more rewards than steps.
    """
    table = gae_over_steps(*_tables(step_rewards, values, steps), gamma=gamma, lam=lam)
    return Advantages(*(steps.to_tokens(steps.to_rows(x)) for x in table))


def step_n_step(
    step_rewards: torch.Tensor, values: torch.Tensor, steps: Steps, *, gamma: float = 1.0, n: int | None = None
) -> Advantages:
    """N-step advantages with one decision a step, on tokens; arguments and result as in `step_gae`."""
    table = n_step_over_steps(*_tables(step_rewards, values, steps), gamma=gamma, n=n)
    return Advantages(*(steps.to_tokens(steps.to_rows(x)) for x in table))


def _tables(
    step_rewards: torch.Tensor, values: torch.Tensor, steps: Steps
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rewards = steps.check_rewards(step_rewards)
    step_values = steps.first_values(values)
    return steps.to_sessions(rewards), steps.to_sessions(step_values), steps.session_mask
