r"""Critic-free estimators: each step against the same prompt's other trajectories.

Notation. A group holds N trajectories of one prompt. Trajectory i has T_i steps with rewards r_{i,0} .. r_{i,T_i-1},
the last of them the outcome; G_{i,t} = sum_{l>=t} gamma^{l-t} r_{i,l} is its return-to-go; all tokens of step t get
A_{i,t}.

    return_to_go_advantages   A_{i,t} = G_{i,t} - b_{i,t}              unbiased with its defaults; below
    mt_grpo_advantages        A_{i,t} = sum_{l>=t, l<T_i-1} norm_l(r_{i,l}) + alpha norm(outcome_i)
                              MT-GRPO (Zeng et al., arXiv:2505.11821); biased for varying T_i, see below
    gigpo_advantages          A_{i,t} = norm(R_i) + omega norm_{s_{i,t}}(G_{i,t})
                              GiGPO (Feng et al., arXiv:2505.10978): the step part compares steps taken in the same
                              state
    outcome_advantages        A_{i,t} = norm(sum_t r_{i,t}), the same for all steps: GRPO (arXiv:2402.03300)
    mix_with_outcome          (1 - w) A_step + w A_outcome

`norm` is set by two options. `baseline="mean"` subtracts the mean of the comparison set, `"leave_one_out"` that of its
other members. `normalise="std"` divides by the set's unbiased standard deviation plus 1e-6, `"none"` does not.

Why the naive per-index form is biased
--------------------------------------
The policy gradient of J = E[sum_t r_t] is E[sum_t G_t grad log pi(a_t | s_t)]. Subtracting b_t leaves it as it is if
b_t does not depend on a_t given s_t, since then E[b_t grad log pi(a_t | s_t)] = 0. With per-index means m_l the naive
form sums r_{i,l} - m_l over the steps that trajectory i went on to take, so it subtracts b_{i,t} = m_t + .. +
m_{T_i-1}. How many terms that has is decided by T_i, hence by the very action a_t when the policy chooses to go on or
to stop: going on is charged the mean of each intermediate reward to come, stopping is not. The bias is the hidden bonus
-E[intermediate reward] of every further step (verl's RFC 7244 measured it).

The unbiased form
-----------------
`return_to_go_advantages` with `leave_one_out` and `none` subtracts, whatever T_i turns out to be, one number:

    b_{i,t} = mean over j in C_i(t) of G_{j,t},    C_i(t) = {j != i: T_j > t}

It is a function of the other trajectories alone. They are drawn independently of trajectory i, so b_{i,t} is
independent of a_{i,t} given s_{i,t} and the gradient is unbiased for gamma = 1, for any distribution of lengths. If
C_i(t) is empty, `lone_step` decides, again by looking at the others only:

    "last_step"  b_{i,t} = mean over j != i of G_{j,T_j-1}, the others' last return-to-go; unbiased, and the default
    "raw"        b_{i,t} = 0: unbiased, but the whole return of a long trajectory becomes advantage
    "zero"       A_{i,t} = 0: no unbiased estimate of that step's gradient (it is scaled by the chance of company)

A group of one has no others: its advantages are its returns, as in verl's GRPO ("zero": 0). Three things bring a bias
back. `baseline="mean"` includes G_{i,t} itself and scales step t by (n - 1) / n. `normalise="std"` divides by a number
that depends on a_{i,t}. And the loss must weigh every policy token alike, free of batch token counts:
`seq-mean-token-sum` or a constant divisor; `token-mean` and `seq-mean-token-mean` divide by lengths that the actions
decide. For gamma < 1 the target is the usual discounted-advantage surrogate, not the gradient of J.
"""

from __future__ import annotations

from typing import Literal

import torch

from verl_toolrl.credit.gae import discounted_returns
from verl_toolrl.credit.steps import Advantages, Steps
from verl_toolrl.errors import ConfigError, UnknownNameError

__all__ = [
    "Baseline",
    "LoneStep",
    "Normalise",
    "gigpo_advantages",
    "mix_with_outcome",
    "mt_grpo_advantages",
    "outcome_advantages",
    "return_to_go_advantages",
]

Baseline = Literal["mean", "leave_one_out"]
Normalise = Literal["std", "none"]
LoneStep = Literal["last_step", "raw", "zero"]

EPSILON = 1e-6
"""Added to the standard deviation, as in verl's GRPO."""


def return_to_go_advantages(
    step_rewards: torch.Tensor,
    steps: Steps,
    group: torch.Tensor,
    *,
    gamma: float = 1.0,
    baseline: Baseline = "leave_one_out",
    normalise: Normalise = "none",
    lone_step: LoneStep = "last_step",
) -> Advantages:
    """Return-to-go of each step against that of the group's other trajectories at the same step index.

    With the defaults the gradient is unbiased when trajectories differ in length; the module derives it.

    Args:
        step_rewards: `(batch, max_steps)`.
        steps: Spans and mask; a session's outputs are one trajectory and count once.
        group: `(batch,)` integer; equal numbers are samples of one prompt (`group_ids`).
        gamma: Discount per step.
        baseline: What is subtracted.
        normalise: What is divided by.
        lone_step: The rule for a step index that no other trajectory of the group reaches.

    Returns:
        Advantages, and the returns-to-go as `returns`.

    Raises:
        ConfigError: If shapes disagree, or there are fewer or more rewards than steps.
        UnknownNameError: If an option is unknown.
    """
    _check_options(baseline, normalise, lone_step)
    mask = steps.session_mask
    returns = discounted_returns(_rewards(step_rewards, steps), mask, gamma=gamma)
    group = _numbered(steps.per_session(group))
    width = mask.shape[1]
    sets = group.unsqueeze(1) * width + torch.arange(width, device=mask.device)
    advantages, company = _compare(returns, mask, sets, baseline, normalise)
    alone = mask & (company == 0)
    if lone_step == "zero":
        advantages = torch.where(alone, torch.zeros_like(returns), advantages)
    elif lone_step == "last_step" and bool(alone.any()):
        advantages = torch.where(alone, _against_last_steps(returns, mask, group, baseline, normalise), advantages)
    return _on_tokens(advantages, returns, steps, step_rewards)


def mt_grpo_advantages(
    step_rewards: torch.Tensor,
    steps: Steps,
    group: torch.Tensor,
    *,
    outcome_weight: float = 1.0,
    accumulate: bool = True,
    baseline: Baseline = "mean",
    normalise: Normalise = "std",
) -> Advantages:
    """MT-GRPO: intermediate rewards normalised per step index, plus the normalised outcome.

    For a step before the last one `A_t = sum_{l>=t} norm_l(r_l) + outcome_weight * norm(outcome)`, for the last
    `A_t = norm(outcome)`: with two steps the two cases of the paper; for more, `accumulate` chooses. Made for a fixed
    number of steps; with varying numbers it is biased against going on (see the module) whatever the options, and
    `return_to_go_advantages` is not.

    Args:
        step_rewards: `(batch, max_steps)`; the last reward of a trajectory is its outcome.
        steps: Spans and mask.
        group: `(batch,)` integer.
        outcome_weight: alpha of the outcome in steps before the last.
        accumulate: Sum the normalised rewards of this and the later intermediate steps; False: this step's alone.
        baseline: What is subtracted.
        normalise: What is divided by.
    """
    _check_options(baseline, normalise)
    mask = steps.session_mask
    rewards = _rewards(step_rewards, steps)
    group = _numbered(steps.per_session(group))
    width = mask.shape[1]
    last = _is_last(mask)
    between = mask & ~last
    sets = group.unsqueeze(1) * width + torch.arange(width, device=mask.device)
    turn, _ = _compare(rewards, between, sets, baseline, normalise)
    if accumulate:
        turn = discounted_returns(turn, between)
    outcomes = (rewards * last).sum(1, keepdim=True)
    outcome, _ = _compare(outcomes, mask.any(1, keepdim=True), group.unsqueeze(1), baseline, normalise)
    advantages = torch.where(last, outcome, turn + outcome_weight * outcome) * mask
    return _on_tokens(advantages, discounted_returns(rewards, mask), steps, step_rewards)


def gigpo_advantages(
    step_rewards: torch.Tensor,
    steps: Steps,
    group: torch.Tensor,
    states: torch.Tensor,
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    baseline: Baseline = "mean",
    normalise: Normalise = "none",
) -> Advantages:
    """GiGPO: the outcome of the trajectory plus omega times each step against the steps taken in the same state.

    `A_{i,t} = norm(R_i) + omega * norm over {(j, u): s_{j,u} = s_{i,t}} (G_{i,t})`, states compared inside a group. A
    state that occurs once says nothing: its step part is 0. R_i is the undiscounted sum, counted once a trajectory
    (verl-agent's default counts it once a step).

    Args:
        step_rewards: `(batch, max_steps)`.
        steps: Spans and mask.
        group: `(batch,)` integer.
        states: `(batch, max_steps)` integer; equal numbers are equal states before the step (`anchor_states`).
        gamma: Discount per step of G.
        omega: Weight of the step part.
        baseline: What is subtracted, in both parts.
        normalise: What is divided by, in both parts; `none` is the paper's setting for agents.
    """
    _check_options(baseline, normalise)
    if states.shape != steps.mask.shape:
        raise ConfigError(f"states: shape {tuple(states.shape)}, wanted {tuple(steps.mask.shape)}")
    mask = steps.session_mask
    rewards = _rewards(step_rewards, steps)
    group = _numbered(steps.per_session(group))
    returns = discounted_returns(rewards, mask, gamma=gamma)
    state = _numbered(steps.to_sessions(torch.where(steps.mask, states.to(steps.mask.device), -1)))
    state = state.view(mask.shape)
    sets = group.unsqueeze(1) * (int(state.max()) + 1 if state.numel() else 1) + state
    micro, company = _compare(returns, mask, sets, baseline, normalise)
    micro = torch.where(company > 0, micro, torch.zeros_like(micro))
    macro = _outcome(rewards, mask, group, baseline, normalise)
    return _on_tokens((macro + omega * micro) * mask, returns, steps, step_rewards)


def outcome_advantages(
    step_rewards: torch.Tensor,
    steps: Steps,
    group: torch.Tensor,
    *,
    baseline: Baseline = "mean",
    normalise: Normalise = "std",
) -> Advantages:
    """GRPO on the trajectory's summed reward, the same advantage on all its policy tokens; verl's `grpo` by default.

    `leave_one_out` with `none` is RLOO, unbiased and without credit by step. Arguments as in `return_to_go_advantages`.
    """
    _check_options(baseline, normalise)
    mask = steps.session_mask
    rewards = _rewards(step_rewards, steps)
    group = _numbered(steps.per_session(group))
    advantages = _outcome(rewards, mask, group, baseline, normalise) * mask
    return _on_tokens(advantages, rewards.sum(1, keepdim=True) * mask, steps, step_rewards)


def mix_with_outcome(step: Advantages, outcome: Advantages, *, outcome_weight: float) -> Advantages:
    """Blend two estimates: `(1 - w) * step + w * outcome`; unbiased if both are.

    Raises:
        ConfigError: If the weight is outside [0, 1].
    """
    if not 0.0 <= outcome_weight <= 1.0:
        raise ConfigError(f"outcome_weight {outcome_weight} is outside [0, 1]")
    return Advantages(*(torch.lerp(a, b, outcome_weight) for a, b in zip(step, outcome)))


def _rewards(step_rewards: torch.Tensor, steps: Steps) -> torch.Tensor:
    # Tables of steps are small: float64 costs nothing, and group statistics lose nothing to cancellation.
    return steps.to_sessions(steps.check_rewards(step_rewards).double())


def _on_tokens(advantages: torch.Tensor, returns: torch.Tensor, steps: Steps, step_rewards: torch.Tensor) -> Advantages:
    dtype = step_rewards.dtype if step_rewards.is_floating_point() else torch.float32
    return Advantages(*(steps.to_tokens(steps.to_rows(x).to(dtype)) for x in (advantages, returns)))


def _numbered(ids: torch.Tensor) -> torch.Tensor:
    return torch.unique(ids, return_inverse=True)[1]


def _is_last(mask: torch.Tensor) -> torch.Tensor:
    return mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))


def _outcome(
    rewards: torch.Tensor, mask: torch.Tensor, group: torch.Tensor, baseline: Baseline, normalise: Normalise
) -> torch.Tensor:
    """Return `(sessions, 1)`: the normalised sum of rewards; sessions without a step are in no set."""
    total = rewards.sum(1, keepdim=True)
    return _compare(total, mask.any(1, keepdim=True), group.unsqueeze(1), baseline, normalise)[0]


def _compare(
    values: torch.Tensor, mask: torch.Tensor, sets: torch.Tensor, baseline: Baseline, normalise: Normalise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare each value with its set.

    Args:
        values: Any shape, float64.
        mask: The same shape; False is in no set.
        sets: The same shape, number of the set.

    Returns:
        The advantage (0 where the mask is False; the raw value where a value is alone, as verl's GRPO), and the number
        of other members.
    """
    size = int(sets.max()) + 1 if sets.numel() else 0
    sets, flat, member = sets.flatten(), values.flatten(), mask.flatten().to(values.dtype)

    def total(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, sets, x * member)[sets]

    count = total(torch.ones_like(flat))
    mean = total(flat) / count.clamp(min=1)
    others = (count - 1).clamp(min=1)
    # (x - mean) n / (n - 1) is x less the mean of the others.
    advantage = (flat - mean) * (count / others if baseline == "leave_one_out" else 1.0)
    if normalise == "std":
        advantage = advantage / ((total((flat - mean).square()) / others).sqrt() + EPSILON)
    advantage = torch.where(count > 1, advantage, flat / (1 + EPSILON) if normalise == "std" else flat) * member
    return advantage.view(values.shape), ((count - 1) * member).view(values.shape)


def _against_last_steps(
    returns: torch.Tensor, mask: torch.Tensor, group: torch.Tensor, baseline: Baseline, normalise: Normalise
) -> torch.Tensor:
    """Compare each step's return with the returns of the last steps of the group's *other* trajectories.

    The set of a lone step is its own return and the others' last ones; its members differ from step to step, so the
    statistics come from the group's sums less what trajectory i itself put in.
    """
    present = mask.any(1).to(returns.dtype)
    last = (returns * _is_last(mask)).sum(1)
    size = int(group.max()) + 1 if len(group) else 0

    def of_others(x: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(size, dtype=x.dtype, device=x.device).index_add_(0, group, x * present)
        return (sums[group] - x * present).unsqueeze(1)

    count = of_others(torch.ones_like(last))
    mean = of_others(last) / count.clamp(min=1)
    # Deviation of the set {own return} + others, from the others' mean and spread (parallel-variance formula).
    gap = returns - mean
    advantage = gap if baseline == "leave_one_out" else gap * count / (count + 1)
    if normalise == "std":
        spread = (of_others(last.square()) - count * mean.square()).clamp(min=0) + gap.square() * count / (count + 1)
        advantage = advantage / ((spread / count.clamp(min=1)).sqrt() + EPSILON)
    alone = returns / (1 + EPSILON) if normalise == "std" else returns
    return torch.where(count > 0, advantage, alone)


def _check_options(baseline: str, normalise: str, lone_step: str = "raw") -> None:
    for kind, name, known in (
        ("baseline", baseline, ("mean", "leave_one_out")),
        ("normalise", normalise, ("std", "none")),
        ("lone_step", lone_step, ("last_step", "raw", "zero")),
    ):
        if name not in known:
            raise UnknownNameError(kind, name, known)
