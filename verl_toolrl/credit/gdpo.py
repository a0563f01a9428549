r"""GDPO: each component of the reward normalised in its own group before they are added (arXiv:2601.05242, section 3).

For session j of prompt i with components r_1 .. r_n and weights w_1 .. w_n:

    A_k^(i,j)    = (r_k^(i,j) - mean_j r_k^(i,j)) / std_j r_k^(i,j)         over the group of prompt i
    A_sum^(i,j)  = w_1 A_1^(i,j) + .. + w_n A_n^(i,j)
    A^(i,j)      = (A_sum^(i,j) - mean A_sum) / (std A_sum + eps)           over the sessions of the whole batch

GRPO adds first: rewards (format 1, correctness 0) and (format 0, correctness 1) become one number and are told apart no
more. With one component A_sum is GRPO's advantage, and A is it times one positive number.

The whole batch is what the trainer computes advantages for at once: `data.train_batch_size` prompts, and under verl's
`separate_async`, which does so for each update, `actor.ppo_mini_batch_size` of them.

`batch_norm` says over what the last line goes. `response` is the paper: each response counts once. `token` is what the
released code does (NVlabs/GDPO, verl-GDPO) and verl's own `gdpo`: each policy token counts, so that the mean is no
longer 0 and prompts whose responses all scored alike get an advantage from the lengths of others. `none` leaves A_sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from verl_toolrl.errors import ConfigError, UnknownNameError

__all__ = ["BATCH_NORMS", "gdpo_advantages"]

EPSILON = 1e-6
BATCH_NORMS = ("response", "token", "none")
"""What the last normalisation goes over."""


def gdpo_advantages(
    components: torch.Tensor,
    group: torch.Tensor,
    *,
    weights: Sequence[float] | None = None,
    batch_norm: str = "response",
    policy_tokens: torch.Tensor | None = None,
    normalise_std: bool = True,
    lone: Literal["raw", "zero"] = "raw",
) -> torch.Tensor:
    """Return one advantage a session.

    Args:
        components: `(sessions, n)` float; padding and what was lost to infrastructure must not be among them.
        group: `(sessions,)` integer; equal numbers are sessions of one prompt.
        weights: One number a component; None: 1 each.
        batch_norm: `response`, `token` or `none`.
        policy_tokens: `(sessions,)` tokens that the model wrote; needed for `token`.
        normalise_std: False leaves the division by the group's standard deviation out.
        lone: What a session alone in its group is worth: its components as they are, as in verl's GRPO (`raw`, right
            where a prompt has one rollout), or 0 (right where its siblings were lost).

    Returns:
        `(sessions,)` float64. A component that is the same for a whole group gives it exactly 0.

    Raises:
        ConfigError: If shapes disagree, a component is not finite or an option is unknown.
    """
    values = _checked(components, group, batch_norm)
    scale = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
    if weights is not None:
        if len(weights) != len(scale):
            raise ConfigError(f"gdpo: {len(weights)} weights for {len(scale)} components")
        scale = torch.as_tensor(list(weights), dtype=values.dtype, device=values.device)
    total = _in_groups(values, group.to(values.device), normalise_std, lone) @ scale
    if batch_norm == "none" or len(total) < 2:
        return total
    if batch_norm == "response":
        mean = total.mean()
        # Whole groups sum to 0; a rest of rounding must not become the advantage of those that are equal throughout.
        mean = torch.where(mean.abs() < EPSILON * EPSILON, torch.zeros_like(mean), mean)
        return (total - mean) / (total.std() + EPSILON)
    if policy_tokens is None or policy_tokens.shape != total.shape:
        found = None if policy_tokens is None else tuple(policy_tokens.shape)
        raise ConfigError(f"gdpo: batch_norm 'token' needs policy_tokens of shape ({len(total)},), got {found}")
    counts = policy_tokens.to(total)
    mean = (total * counts).sum() / counts.sum()
    variance = ((total - mean).square() * counts).sum() / (counts.sum() - 1)
    return (total - mean) * torch.rsqrt(variance + 1e-8)


def _checked(components: torch.Tensor, group: torch.Tensor, batch_norm: str) -> torch.Tensor:
    if batch_norm not in BATCH_NORMS:
        raise UnknownNameError("batch_norm", batch_norm, BATCH_NORMS)
    if components.dim() != 2 or components.shape[1] == 0:
        raise ConfigError(f"gdpo: components of shape {tuple(components.shape)}, wanted (sessions, components)")
    if tuple(group.shape) != (len(components),) or group.is_floating_point():
        raise ConfigError(f"gdpo: group is {group.dtype} of shape {tuple(group.shape)}, wanted ({len(components)},)")
    if not bool(torch.isfinite(components).all()):
        session, component = (int(index) for index in (~torch.isfinite(components)).nonzero()[0])
        raise ConfigError(f"gdpo: component {component} of session {session} is {components[session, component]}")
    # A number a session: float64 costs nothing.
    return components.double()


def _in_groups(values: torch.Tensor, group: torch.Tensor, normalise_std: bool, lone: str) -> torch.Tensor:
    """Normalise each column in its group: `(sessions, n)`."""
    if len(values) == 0:
        return values
    number = torch.unique(group, return_inverse=True)[1]
    size = int(number.max()) + 1
    count = torch.bincount(number, minlength=size).to(values).unsqueeze(1)
    index = number.unsqueeze(1).expand_as(values)

    def over_group(source: torch.Tensor, reduce: str) -> torch.Tensor:
        empty = torch.zeros(size, values.shape[1], dtype=values.dtype, device=values.device)
        return empty.scatter_reduce_(0, index, source, reduce, include_self=False)

    gap = values - (over_group(values, "sum") / count)[number]
    # Equal values leave a rest of rounding, which the division would blow up.
    equal = over_group(values, "amax") == over_group(values, "amin")
    gap = torch.where(equal[number], torch.zeros_like(gap), gap)
    if normalise_std:
        spread = (over_group(gap.square(), "sum") / (count - 1).clamp(min=1)).sqrt()
        gap = gap / (spread[number] + EPSILON)
    alone = (count == 1)[number]
    if lone == "raw":
        raw = values / (1 + EPSILON) if normalise_std else values
        return torch.where(alone, raw, gap)
    return gap
