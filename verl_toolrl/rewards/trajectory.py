"""Rewards of whole trajectories: every step, call, answer and state, not only the last text.

A reward that takes a `trajectory` gets the record of a rollout and answers with `StepRewards`, one a step (`steptool`
does). A user's own is a plain function, named by where it is (`package.module:score` or `path/to/file.py:score`):

    def score(trajectory):
        return float(trajectory.final_answer.strip() == trajectory.extra["answer"])

    def score(*, trajectory, step=0, total_steps=None):          # or components; the score is their sum
        calls = [result for step in trajectory.steps for result in step.results]
        return {"solved": trajectory.extra["final_state"] == trajectory.extra["ground_truth_state"],
                "calls": -0.01 * len(calls)}

It returns a number, a mapping of components, or a `StepRewards`. `trajectory.extra` holds what `extra_info` of the row
says under its own names, and `ground_truth`, `data_source`, `global_step` and, where tools keep state, `final_state`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.rewards.base import Reward
from verl_toolrl.rewards.function import Answers, load_object
from verl_toolrl.trajectory import Step, Trajectory

__all__ = ["TrajectoryFunction", "empty_trajectory", "need_response_reward", "score_trajectory", "takes_trajectory"]

_ARGUMENTS = ("trajectory", "step", "total_steps")


def takes_trajectory(reward: Callable[..., Any]) -> bool:
    """Whether a configured reward scores a `Trajectory` instead of a response."""
    return "trajectory" in inspect.signature(reward).parameters


def need_response_reward(reward: Callable[..., Any], name: str) -> None:
    """Refuse a reward of trajectories where there are only responses.

    Raises:
        ConfigError: If it takes a trajectory.
    """
    if takes_trajectory(reward):
        raise ConfigError(
            f"reward {name!r} scores whole trajectories, and here are only responses; it works in training"
        )


@dataclass(frozen=True)
class TrajectoryFunction:
    """A user's function of a trajectory as a reward."""

    path: str
    """Where the function is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords for it."""
    at_end: bool = False
    """Tell the function that every step is the last one: what it gives then does not follow its schedule."""
    _answers: Answers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_answers", Answers(self.path))
        parameters = inspect.signature(load_object(self.path)).parameters
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return
        known = [name for name in parameters if name not in _ARGUMENTS]
        for name in self.options:
            if name not in known:
                raise ConfigError(f"{self.path}: unknown option {name!r}{nearest(name, known)}; known: {known}")
        for name in known:
            if parameters[name].default is inspect.Parameter.empty and name not in self.options:
                raise ConfigError(f"{self.path}: asks for {name!r}; we give {', '.join(_ARGUMENTS)} and its options")

    def __call__(self, trajectory: Trajectory, *, step: int = 0, total_steps: int | None = None) -> Any:
        """Call the function.

        Raises:
            ConfigError: If it returns anything but finite numbers or step rewards, or other components than at first.
        """
        function = load_object(self.path)
        given = {"step": (total_steps or 0) if self.at_end else step, "total_steps": total_steps}
        parameters = inspect.signature(function).parameters
        answer = function(
            trajectory=trajectory,
            **{name: value for name, value in given.items() if name in parameters},
            **self.options,
        )
        return self._answers.checked(answer)

    def unscheduled(self) -> TrajectoryFunction:
        """The same function at the end of the run, where it asks for the step at all."""
        if "step" not in inspect.signature(load_object(self.path)).parameters:
            return self
        plain = replace(self, at_end=True)
        object.__setattr__(plain, "_answers", self._answers)  # both are reported side by side
        return plain


def score_trajectory(
    reward: Callable[..., Any], trajectory: Trajectory, *, step: int = 0, total_steps: int | None = None
) -> tuple[Reward, tuple[float, ...] | None]:
    """Score a trajectory with a reward that takes one.

    Args:
        reward: Configured; `takes_trajectory` is true of it.
        trajectory: What was rolled out.
        step: Global step of the trainer, for those that ask.
        total_steps: Length of the run, likewise.

    Returns:
        Score and components, and one reward a step, or None where the reward gives none.

    Raises:
        ConfigError: If it gives another number of rewards than there are steps, or one that is not finite.
        DatasetError: If the reference in the row is missing or cannot be read.
    """
    parameters = inspect.signature(reward).parameters
    given = {"step": step, "total_steps": total_steps}
    result = reward(trajectory, **{name: value for name, value in given.items() if name in parameters})
    if isinstance(result, Reward):
        return result, None
    rewards = tuple(float(value) for value in result.step_rewards)
    if len(rewards) != len(trajectory.steps) or not all(map(math.isfinite, rewards)):
        raise ConfigError(f"{reward}: gave step rewards {rewards} for {len(trajectory.steps)} steps")
    return Reward(math.fsum(rewards), dict(result.components), dict(result.metrics)), rewards


def empty_trajectory(row: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory of a model that said nothing to a row: enough to see whether the row can be scored."""
    extra_info = row.get("extra_info")
    extra = {k: v for k, v in (extra_info if isinstance(extra_info, Mapping) else {}).items() if v is not None}
    truth = (row.get("reward_model") or {}).get("ground_truth")
    facts: dict[str, Any] = {
        "data_source": row.get("data_source"),
        "ground_truth": truth,
        "global_step": 0,
        "final_state": {},
    }
    return Trajectory((Step(""),), messages=tuple(row.get("prompt") or ()), extra={**extra, **facts})
