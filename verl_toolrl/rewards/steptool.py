"""Step rewards of StepTool (Yu et al., arXiv:2410.07745v4): a reward for every step of a trajectory.

Three named parts, each with a weight: SuccCalling (did the call work), Contribution (was its answer used), IsSolved (is
the task done). A trajectory has steps 0 .. T-1, the last one answers. The modes:

    released   r_t = (SC + Con) / 2 by the authors' rules, r_{T-1} = IS. The rules read the first call of a step and
               expect ToolBench's answers, {"error": ..., "response": ...}. IsSolved by rule was never released: a
               verifier gives it. What they trained adds the weights T-1-i of credit's scheme `released`, which drop IS
    paper      r_t = alpha * SC + Con for t < T-1, r_{T-1} = IS; SC and Con are means over the calls of the step
    robust     r_t = bound * (share of the trajectory's calls that are useful and lie in step t), r_{T-1} = IS, where a
               call is useful if it succeeded, repeats no earlier call, and its answer was used

`robust` cannot be farmed, and tests hold it to that. A useful call earns `bound / calls`, any other call nothing:
  - a repeated or unused call never raises the return: it adds nothing to the sum and enlarges the divisor;
  - intermediate rewards lie in [0, bound], however many calls there are;
  - every solved trajectory beats every unsolved one: IS is `solved_weight` when solved and at most `partial` of it when
    not, and a configuration without `bound * unsolved_share < (1 - partial) * solved_weight` is refused.
A repetition is the same tool with the same arguments: a retry or a "next page" without arguments earns no intermediate
reward, IsSolved pays for it. The last promise holds for the undiscounted sum; with gamma < 1 a step keep
`bound * unsolved_share + partial < gamma ** (T - 1)`, at `solved_weight` 1. An unsolved trajectory keeps
`unsolved_share` of its intermediate rewards. SuccCalling and Contribution share a useful call's reward by their
weights. `paper` and `released` can be farmed by calling more.

A trajectory that a failure of infrastructure decided has no reward: `valid` is False, all rewards are 0, keep it out of
the gradient.

Stable paths of the pure functions (beside those of `verl_toolrl.credit`):

    verl_toolrl.rewards.steptool            StepToolReward, StepRewards
    verl_toolrl.rewards.steptool_released   released_success, success_count (rules for SuccCalling)
                                            released_contribution, contributing, longest_common_subsequence,
                                            subsequence_length (rules for Contribution)
                                            aggregate_judgements (k judgements -> step rewards)
                                            tokenise_sample (a row of the offline format -> tokens and mask)
    verl_toolrl.rewards.succ_calling        SuccCalling, ContentRules
    verl_toolrl.rewards.call_schema         SchemaCheck, the schema part of SuccCalling (needs jsonschema-rs)
    verl_toolrl.rewards.contribution        used_calls, final_answer
    verl_toolrl.rewards.is_solved           ExactMatch, NumericMatch, StateMatch, JudgedStatus
    verl_toolrl.rewards.judge               Judge, judged_rewards, parse_judgement (needs httpx)
    verl_toolrl.rewards.steptool_offline    to_offline, write_offline, read_offline
    verl_toolrl.credit                      reward placement, KL, KL control, GAE, PPO loss
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.rewards.base import register_reward
from verl_toolrl.rewards.contribution import Attempt, attempts, call_key, final_answer, used_calls
from verl_toolrl.rewards.is_solved import Verifier, make_verifier
from verl_toolrl.rewards.steptool_released import contributing, released_success
from verl_toolrl.rewards.succ_calling import SuccCalling
from verl_toolrl.trajectory import Step, StopReason, Trajectory

__all__ = ["MODES", "PARTS", "Mode", "StepRewards", "StepToolReward"]

Mode = Literal["released", "paper", "robust"]
MODES = ("released", "paper", "robust")
PARTS = ("succ_calling", "contribution", "is_solved")
"""Keys of the components, the same for every trajectory and mode."""


@dataclass(frozen=True)
class StepRewards:
    """What one trajectory earned."""

    step_rewards: tuple[float, ...]
    """One reward a step."""
    step_components: Mapping[str, tuple[float, ...]]
    """Part -> its weighted share of each step's reward; the shares of a step sum to its reward."""
    metrics: Mapping[str, float]
    """Raw measures without weights; the same keys every time."""
    valid: bool = True
    """False: a failure of infrastructure decided the trajectory, and it must not train."""

    @property
    def score(self) -> float:
        """Sum of the step rewards."""
        return sum(self.step_rewards)

    @property
    def components(self) -> dict[str, float]:
        """Part -> its share of the score."""
        return {part: sum(values) for part, values in self.step_components.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values."""
        return {
            "step_rewards": list(self.step_rewards),
            "score": self.score,
            "components": self.components,
            "step_components": {part: list(values) for part, values in self.step_components.items()},
            "metrics": dict(self.metrics),
            "valid": self.valid,
        }


@register_reward("steptool")
@dataclass(frozen=True)
class StepToolReward:
    """A configured StepTool reward: `reward(trajectory) -> StepRewards`. Pickles if its verifier and checks do."""

    mode: Mode = "robust"
    """Formulas; see the module."""
    verifier: str | Mapping[str, Any] | Verifier = "exact"
    """IsSolved: a name, `{"name": ..., **options}`, or a callable `(trajectory, answer) -> [0, 1]`."""
    alpha: float = 1.0
    """Weight of SuccCalling; the paper names it and gives no value. Not used by `released`."""
    contribution_weight: float = 1.0
    """Weight of Contribution. Not used by `released`."""
    solved_weight: float = 1.0
    """Weight of IsSolved. Not used by `released`."""
    contribution: Literal["used", "subsequence"] = "used"
    """Rule of `paper`: information that was used, or the authors' common subsequence of characters."""
    threshold: float = 0.3
    """Least ratio of the authors' rule."""
    bound: float = 0.5
    """Most that the intermediate rewards of a `robust` trajectory sum to."""
    unsolved_share: float = 1.0
    """Share of its intermediate rewards that an unsolved `robust` trajectory keeps, from 0 to 1. At 1 one useful call
    and a wrong answer earns `bound`, twice as much as with a second call that fails: a reason to stop early."""
    partial: float = 0.25
    """Most that IsSolved is worth in `robust` below `solved_at`, for verifiers with values between 0 and 1."""
    solved_at: float = 1.0
    """Verifier's value from which `robust` calls a trajectory solved."""
    success: SuccCalling = field(default_factory=SuccCalling)
    """Rule of SuccCalling in `paper` and `robust`."""
    finish_tool: str | None = "Finish"
    """Tool whose call ends a trajectory with its `final_answer`; not a call to be rewarded."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode of steptool", self.mode, MODES)
        if self.contribution not in ("used", "subsequence"):
            raise UnknownNameError("contribution rule", self.contribution, ("used", "subsequence"))
        for name in ("alpha", "contribution_weight", "solved_weight", "threshold", "bound", "partial"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"steptool: {name} is {value}, wanted a finite number of at least 0")
        if self.mode == "robust" and not self.alpha + self.contribution_weight > 0:
            raise ConfigError("steptool: alpha and contribution_weight are both 0, so nothing shares the bound")
        if not 0 <= self.unsolved_share <= 1:
            raise ConfigError(f"steptool: unsolved_share is {self.unsolved_share}, wanted a value from 0 to 1")
        if not 0 < self.solved_at <= 1:
            raise ConfigError(f"steptool: solved_at is {self.solved_at}, wanted a value in (0, 1]")
        unsolved = self.bound * self.unsolved_share + self.partial * self.solved_weight
        if self.mode == "robust" and not unsolved < self.solved_weight:
            raise ConfigError(
                f"steptool: bound {self.bound} * unsolved_share {self.unsolved_share} + partial {self.partial} * "
                f"solved_weight {self.solved_weight} must be less than solved_weight, or an unsolved trajectory could "
                "beat a solved one"
            )
        object.__setattr__(self, "verifier", make_verifier(self.verifier))

    def __call__(self, trajectory: Trajectory) -> StepRewards:
        """Reward every step of a trajectory.

        Raises:
            DatasetError: If the verifier's reference is missing or unreadable. What the model or a tool wrote never is.
            ConfigError: If the verifier returns something outside [0, 1].
        """
        steps = trajectory.steps
        if not steps or trajectory.lost_to_infrastructure:
            return _no_rewards(len(steps), lost=trajectory.lost_to_infrastructure)
        answer = final_answer(trajectory, finish_tool=self.finish_tool)
        if trajectory.stop_reason is not StopReason.FINISHED:
            answer = ""  # cut off or out of budget: whatever stands there, nobody answered
        solved = self._solved(trajectory, answer)
        tried = [self._attempts(step) for step in steps]
        success = [[self._succeeded(attempt) for attempt in made] for made in tried]
        unparsed = [len(step.unparsed) for step in steps]
        if self.mode == "released" or (self.mode == "paper" and self.contribution == "subsequence"):
            contents = [attempt.result.content if attempt.result else "" for made in tried for attempt in made]
            used = contributing(contents, answer, threshold=self.threshold, any_form=self.mode == "paper")
        else:
            used = [use.used for use in used_calls(trajectory, tried, success, answer)]
        if self.mode == "robust":
            bound, final = self.bound, self.solved_weight
            if solved < self.solved_at:
                bound, final = bound * self.unsolved_share, final * self.partial * solved
            shares = self._robust(tried, used, sum(unparsed), bound)
        elif self.mode == "paper":
            shares = _means(tried, success, used, unparsed, (self.alpha, self.contribution_weight))
            final = self.solved_weight * solved
        else:
            shares, final = _means(tried, success, used, [0] * len(steps), (0.5, 0.5)), solved
        keys = [call_key(attempt.call) for made in tried for attempt in made]
        metrics = {
            "is_solved": solved,
            "calls": float(len(keys)),
            "successful_calls": float(sum(map(sum, success))),
            "used_calls": float(sum(used)),
            "repeated_calls": float(len(keys) - len(set(keys))),
            "unparsed_calls": float(sum(unparsed)),
            "steps": float(len(steps)),
            "infra_error": 0.0,
        }
        return _assemble(shares[:-1], final, metrics)

    def _solved(self, trajectory: Trajectory, answer: str) -> float:
        verifier = self.verifier
        assert callable(verifier)
        solved = float(verifier(trajectory, answer))
        if not 0.0 <= solved <= 1.0:
            raise ConfigError(f"steptool: the verifier returned {solved} for {trajectory.id!r}, wanted [0, 1]")
        return solved

    def _attempts(self, step: Step) -> list[Attempt]:
        if self.mode != "released":
            return attempts(step, self.finish_tool)
        # The released rules read the first call of a message, and only if something followed it.
        first = replace(step, calls=step.calls[:1])
        return [attempt for attempt in attempts(first, self.finish_tool) if attempt.result is not None]

    def _succeeded(self, attempt: Attempt) -> bool:
        if self.mode == "released":
            return attempt.result is not None and released_success(attempt.result.content)
        return self.success(attempt.call, attempt.result)

    def _robust(
        self, tried: Sequence[Sequence[Attempt]], used: Sequence[bool], unparsed: int, bound: float
    ) -> list[tuple[float, float]]:
        """Shares of SuccCalling and Contribution a step; a call that could not be read counts as a call."""
        each = bound / max(len(used) + unparsed, 1)
        succ = self.alpha / (self.alpha + self.contribution_weight)
        shares, at = [], 0
        for made in tried:
            useful = sum(used[at : at + len(made)])
            shares.append((each * useful * succ, each * useful * (1 - succ)))
            at += len(made)
        return shares


def _means(
    tried: Sequence[Sequence[Attempt]],
    success: Sequence[Sequence[bool]],
    used: Sequence[bool],
    unparsed: Sequence[int],
    weights: tuple[float, float],
) -> list[tuple[float, float]]:
    """Means over the calls of each step, times the weights of SuccCalling and Contribution."""
    shares, at = [], 0
    for made, good, unread in zip(tried, success, unparsed):
        calls = max(len(made) + unread, 1)
        shares.append((weights[0] * sum(good) / calls, weights[1] * sum(used[at : at + len(made)]) / calls))
        at += len(made)
    return shares


def _assemble(before: Sequence[tuple[float, float]], final: float, metrics: Mapping[str, float]) -> StepRewards:
    """Put the shares on the steps before the last and the final reward on the last one."""
    components = {
        "succ_calling": (*(sc for sc, _ in before), 0.0),
        "contribution": (*(con for _, con in before), 0.0),
        "is_solved": (*[0.0] * len(before), final),
    }
    return StepRewards((*(sc + con for sc, con in before), final), components, metrics)


def _no_rewards(steps: int, *, lost: bool) -> StepRewards:
    metrics = dict.fromkeys(
        ("is_solved", "calls", "successful_calls", "used_calls", "repeated_calls", "unparsed_calls"), 0.0
    )
    zeros = (0.0,) * steps
    return StepRewards(
        zeros,
        dict.fromkeys(PARTS, zeros),
        {**metrics, "steps": float(steps), "infra_error": float(lost)},
        valid=not lost,
    )
