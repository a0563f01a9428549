"""KL terms, KL control and the PPO loss of the trainer that StepTool was released on (trl 0.10.1), for parity.

verl has its own of each for training; these exist so that the released numbers can be reproduced and compared.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from verl_toolrl.errors import ConfigError, UnknownNameError

__all__ = ["KlPenalty", "PpoLoss", "adaptive_kl_coef", "kl_penalty", "ppo_loss"]

KlPenalty = Literal["kl", "abs", "mse", "full"]


def kl_penalty(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, penalty: KlPenalty = "kl") -> torch.Tensor:
    """Per-token penalty for leaving the reference, with d = log_probs - ref_log_probs.

    `kl`: d; `abs`: |d|; `mse`: d^2 / 2; `full`: sum over the vocabulary of p * d, which needs `(..., vocabulary)`.

    Raises:
        UnknownNameError: If the penalty is unknown.
    """
    difference = log_probs - ref_log_probs
    if penalty == "kl":
        return difference
    if penalty == "abs":
        return difference.abs()
    if penalty == "mse":
        return 0.5 * difference.square()
    if penalty == "full":
        return (log_probs.exp() * difference).sum(-1)
    raise UnknownNameError("KL penalty", penalty, ("kl", "abs", "mse", "full"))


def adaptive_kl_coef(value: float, *, target: float, horizon: float, current_kl: float, n_steps: int) -> float:
    """Return the next coefficient: `value * (1 + clip(current_kl / target - 1, -0.2, 0.2) * n_steps / horizon)`.

    Source: Ziegler et al. 2019, arXiv:1909.08593; trl 0.10.1. With the released settings (0.3, 6, 10000, 8) it moves by
    0.016 % a batch at most.

    Raises:
        ConfigError: If target or horizon is not positive.
    """
    if target <= 0 or horizon <= 0:
        raise ConfigError(f"adaptive KL: target {target} and horizon {horizon} must be positive")
    error = min(max(current_kl / target - 1, -0.2), 0.2)
    return value * (1 + error * n_steps / horizon)


class PpoLoss(NamedTuple):
    """The two terms of the loss; their sum is what is minimised."""

    policy: torch.Tensor
    """Masked mean of `max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange))`."""
    value: torch.Tensor
    """`vf_coef * 0.5 *` masked mean of `max((v - R)^2, (clip(v, V - c, V + c) - R)^2)`."""


def ppo_loss(
    old_log_probs: torch.Tensor,
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    values: torch.Tensor,
    new_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    *,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    ratio_threshold: float = 10.0,
) -> PpoLoss:
    """Clipped PPO loss of trl 0.10.1 over one mini-batch; all tensors of one shape, mask 1 on policy tokens.

    The whole mini-batch is dropped (both terms 0, keeping their graph) when the mean ratio exceeds `ratio_threshold`.
    """
    mask = mask.to(log_probs.dtype)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (x * mask).sum() / mask.sum()

    ratio = torch.exp(log_probs - old_log_probs)
    policy = mean(torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)))
    clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)
    value = vf_coef * 0.5 * mean(torch.maximum((new_values - returns).square(), (clipped - returns).square()))
    if float(mean(ratio.detach())) > ratio_threshold:
        return PpoLoss(policy * 0.0, value * 0.0)
    return PpoLoss(policy, value)
