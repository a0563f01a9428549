"""Step rewards onto tokens: each reward on the last token of its step.

Schemes of weights, for a row with T steps and rewards r_0 .. r_{T-1}:

    released   w_i = T - 1 - i   the released trainer (yuyq18/StepTool@121a6ac): the first step counts most and the
                                 last, which carries IsSolved, not at all; `sum w_i r_i` is not the trajectory's reward
    paper      w_i = 1           arXiv:2410.07745v4: on the last token of the recorded span, whatever that token is; a
                                 token with mask 0 trains nothing and verl's GAE drops it, so a span that ends on such a
                                 token loses its reward
    robust     w_i = 1           on the last *policy* token of the step; a step that has none hands its reward to the
                                 step before it (the first ones: to the next step that has one)

`robust` conserves: the token rewards of a row sum to its step rewards whenever the row has a trained token in a step at
all. `paper` conserves when every span ends on a policy token. `released` does not.

What this does not do: discount, subtract a baseline, or touch KL; see `gae`, `group` and `ppo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from verl_toolrl.credit.ppo import KlPenalty, kl_penalty
from verl_toolrl.credit.steps import Steps, spans_from_mask
from verl_toolrl.errors import ConfigError, UnknownNameError

__all__ = [
    "ReleasedPlacement",
    "Scheme",
    "place_final_reward",
    "place_step_rewards",
    "released_logprob_masks",
    "released_token_rewards",
    "split_session_rewards",
    "step_weights",
]

Scheme = Literal["released", "paper", "robust"]
SCHEMES = ("released", "paper", "robust")


def step_weights(mask: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the weight of each step's reward: `(batch, max_steps)` bool -> float32, 0 on padding.

    Raises:
        UnknownNameError: If the scheme is not `released`, `paper` or `robust`.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError("scheme of step weights", scheme, SCHEMES)
    if scheme != "released":
        return mask.float()
    position = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - position, 0).float()


def place_step_rewards(step_rewards: torch.Tensor, steps: Steps, *, scheme: Scheme = "robust") -> torch.Tensor:
    """Put each step's weighted reward on one token of the step.

    Args:
        step_rewards: `(batch, max_steps)` float; 0 (or NaN) where a row has no such step.
        steps: Spans and mask of the batch.
        scheme: Weights and place; see the module. With several outputs of one session, `released` counts T over the
            whole session.

    Returns:
        `(batch, response_length)` token-level rewards, 0 elsewhere.

    Raises:
        ConfigError: If there are fewer or more rewards than steps.
        UnknownNameError: If the scheme is unknown.
    """
    rewards = steps.check_rewards(step_rewards)
    rewards = rewards * steps.to_rows(step_weights(steps.session_mask, scheme)).to(rewards.dtype)
    starts, ends = steps.spans.unbind(-1)
    last = (ends - 1).clamp(min=0)
    has_token = steps.mask & (ends > starts)
    if scheme == "robust" and steps.mask.numel():
        trained = has_token & steps.response_mask.ne(0).gather(1, last)
        if not torch.equal(trained, steps.mask):
            last, has_token, rewards = _onto_policy_tokens(rewards, steps)
    tokens = torch.zeros(steps.response_mask.shape, dtype=rewards.dtype, device=rewards.device)
    return tokens.scatter_add_(1, last, torch.where(has_token, rewards, torch.zeros_like(rewards)))


def _onto_policy_tokens(rewards: torch.Tensor, steps: Steps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the last policy token of each step, and hand the rewards of steps without one to a neighbour."""
    trained = steps.response_mask.ne(0)
    position = torch.arange(trained.shape[1], device=trained.device)
    latest = torch.where(trained, position, -1).cummax(1).values
    starts, ends = steps.spans.unbind(-1)
    last = latest.gather(1, (ends - 1).clamp(min=0))
    has_token = steps.mask & (ends > starts) & (last >= starts)
    rewards = rewards.clone()
    for step in range(rewards.shape[1] - 1, 0, -1):  # backwards: a reward moves to the step before
        moves = steps.mask[:, step] & ~has_token[:, step]
        rewards[:, step - 1] += torch.where(moves, rewards[:, step], 0)
        rewards[:, step] = torch.where(moves, 0, rewards[:, step])
    for step in range(rewards.shape[1] - 1):  # forwards: what has gathered at the front moves to the first with a token
        moves = steps.mask[:, step] & ~has_token[:, step]
        rewards[:, step + 1] += torch.where(moves, rewards[:, step], 0)
        rewards[:, step] = torch.where(moves, 0, rewards[:, step])
    return last.clamp(min=0), has_token, rewards


def place_final_reward(rewards: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Put one reward a row on its last policy token: `(batch,)` -> `(batch, response_length)`; the outcome-only form.

    With several outputs of one session, give the reward to the last output and 0 to the others, so that it counts once.
    """
    trained = response_mask.ne(0)
    last = torch.where(trained, torch.arange(trained.shape[1], device=trained.device), -1).amax(1, keepdim=True)
    tokens = torch.zeros(trained.shape, dtype=rewards.dtype, device=rewards.device)
    return tokens.scatter_add_(1, last.clamp(min=0), torch.where(last >= 0, rewards.unsqueeze(1), 0))


def split_session_rewards(step_rewards: Sequence[float], steps_per_output: Sequence[int]) -> list[list[float]]:
    """Deal the step rewards of one session to its outputs, in order; the final reward lands once, on the last step.

    Raises:
        ConfigError: If the outputs do not hold as many steps as there are rewards.
    """
    if sum(steps_per_output) != len(step_rewards):
        raise ConfigError(
            f"{len(step_rewards)} step rewards for {sum(steps_per_output)} steps in {len(steps_per_output)} outputs"
        )
    dealt, taken = [], 0
    for count in steps_per_output:
        dealt.append(list(step_rewards[taken : taken + count]))
        taken += count
    return dealt


class ReleasedPlacement(NamedTuple):
    """What the released trainer makes of one mask and its scores."""

    token_rewards: torch.Tensor
    """`(length,)` float64; weighted scores on the last token of their runs, minus `kl_coef * kl` on every position."""
    kl: torch.Tensor
    """`(length,)` float64; the penalty before the coefficient."""
    step_weights: list[int]
    """T - 1 - i for every score, placed or not."""
    step_token_index: list[int | None]
    """Where each score was put; None for a score without a run."""


def released_token_rewards(
    mask: Sequence[int] | torch.Tensor,
    scores: Sequence[float],
    *,
    scheme: Scheme = "released",
    log_probs: torch.Tensor | None = None,
    ref_log_probs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    penalty: KlPenalty = "kl",
) -> ReleasedPlacement:
    """Repeat the released `compute_rewards` for one sample: runs of the mask, aligned with the scores from the end.

    The last run takes the last score, and so on to the front. With more scores than runs the early scores are lost,
    with fewer the early runs get nothing; two responses without a prompt token between them are one run.

    Args:
        mask: `(length,)`; 1 on action tokens, aligned with log-probs (`released_logprob_masks`).
        scores: Step rewards, as many as the sample has steps.
        scheme: `released` weights T - 1 - i; `paper` and `robust` weights 1 on the same tokens.
        log_probs: `(length,)`, or `(length, vocabulary)` for the penalty `full`; None: no KL term.
        ref_log_probs: The same of the reference model.
        kl_coef: beta of the KL term.
        penalty: Form of the KL term.

    Raises:
        ConfigError: If only one of the log-probs is given, or their shape does not fit the mask.
        UnknownNameError: If the scheme or the penalty is unknown.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError("scheme of step weights", scheme, SCHEMES)
    if (log_probs is None) != (ref_log_probs is None):
        raise ConfigError("log_probs and ref_log_probs come together")
    mask = torch.as_tensor(mask)
    kl = torch.zeros(len(mask), dtype=torch.float64)
    if log_probs is not None and ref_log_probs is not None:
        kl = kl_penalty(torch.as_tensor(log_probs), torch.as_tensor(ref_log_probs), penalty).double()
        if kl.shape != mask.shape:
            raise ConfigError(f"log_probs give a KL of shape {tuple(kl.shape)} for a mask of {tuple(mask.shape)}")
    rewards = -kl_coef * kl
    weights = [len(scores) - 1 - i for i in range(len(scores))]
    places: list[int | None] = [None] * len(scores)
    ends = spans_from_mask(mask.unsqueeze(0), warn=False)[0, :, 1].tolist()
    for back, end in enumerate(reversed(ends), start=1):
        if back > len(scores):
            break
        index = len(scores) - back
        rewards[end - 1] += scores[index] * (weights[index] if scheme == "released" else 1)
        places[index] = end - 1
    return ReleasedPlacement(rewards, kl, weights, places)


def released_logprob_masks(fragment_masks: Sequence[Sequence[int]]) -> torch.Tensor:
    """Repeat the released mask shift: `mask[:, t] = fragment[t + 1]`, aligned with the log-prob that predicts t + 1.

    Rows are written from index 0 whatever the padding side, as released, so left-padded rows are misaligned.

    Args:
        fragment_masks: 0 on prompt and tool tokens, 1 on action tokens, one list a sample (prompt and response).

    Returns:
        `(batch, longest - 1)` int64.
    """
    width = max((len(row) for row in fragment_masks), default=1) - 1
    masks = torch.zeros(len(fragment_masks), width, dtype=torch.int64)
    for row, fragment in enumerate(fragment_masks):
        masks[row, : len(fragment) - 1] = torch.tensor(fragment[1:], dtype=torch.int64)
    return masks
