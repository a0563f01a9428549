"""What a step's trajectories look like as numbers for the log, and thresholds at which the log says so loudly.

Training of tool use goes wrong in few ways, most of them silent: the model stops calling tools, or calls them with
nonsense; trajectories grow to their limit, or shrink to one answer; all samples of a prompt earn the same, so that
there is nothing to learn from; the entropy is gone; servers fail. Each has a number here and a threshold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.trajectory import Outcome, StopReason

__all__ = ["Alarms", "Thresholds", "measure", "measure_responses", "zero_variance_share"]

_ENDS = tuple(reason.value for reason in StopReason if not reason.value.startswith(("infra", "abort")))
_MODEL = (Outcome.MODEL_ERROR.value, Outcome.REFUSED.value)
_MISTAKES = ("calls/unreadable", "calls/foreign", "calls/unknown_tool", "calls/wrong_type")


def measure(trajectories: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Describe a step's trajectories.

    Args:
        trajectories: As `Trajectory.to_dict` writes them.

    Returns:
        Numbers under `rollout/`, the same keys for every step that has trajectories; empty for none:
        steps and calls a trajectory (mean, max), share of trajectories without a call, share of the calls that were the
        model's mistake (`invalid`: could not be read, unknown tool, arguments against the schema, refused by a budget),
        that the tool answered with an error (`tool_error`), that repeat an earlier call, share of tool answers that
        were cut, seconds of tools a trajectory, and the share of each stop reason.
    """
    if not trajectories:
        return {}
    count, calls, steps, without = len(trajectories), [], [], 0
    outcomes: Counter[str] = Counter()
    ends: Counter[str] = Counter(StopReason(each["stop_reason"]).value for each in trajectories)
    unread = cut = repeated = 0
    seconds = 0.0
    for each in trajectories:
        made, unreadable = 0, 0
        seen: set[str] = set()
        for step in each["steps"]:
            made += len(step["calls"])
            unreadable += len(step["unparsed"])
            for call in step["calls"]:
                key = repr((call["name"], call["arguments"]))
                repeated += key in seen
                seen.add(key)
            for result in step["results"]:
                outcomes[Outcome(result["outcome"]).value] += 1
                cut += bool(result["truncated"])
                seconds += float(result["seconds"])
        calls.append(made)
        steps.append(len(each["steps"]))
        unread += unreadable
        without += not made and not unreadable
    tried, answered = max(sum(calls) + unread, 1), max(outcomes.total(), 1)
    return {
        "rollout/steps/mean": sum(steps) / count,
        "rollout/steps/max": float(max(steps)),
        "rollout/calls/mean": sum(calls) / count,
        "rollout/calls/max": float(max(calls)),
        "rollout/no_call_share": without / count,
        "rollout/invalid_call_share": (unread + sum(outcomes[name] for name in _MODEL)) / tried,
        "rollout/unread_call_share": unread / tried,
        "rollout/tool_error_share": outcomes[Outcome.TOOL_ERROR.value] / tried,
        "rollout/repeated_call_share": repeated / tried,
        "rollout/cut_answer_share": cut / answered,
        "rollout/tool_seconds/mean": seconds / count,
        **{f"rollout/stop/{reason}": ends[reason] / count for reason in _ENDS},
    }


def measure_responses(infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Describe a step of single turns, which have no trajectories, by what the reward watched.

    Args:
        infos: Numbers of each response, as `rewards.watch` names them.

    Returns:
        Those of `measure`'s numbers that alarms look at: share of responses without a call, and share of the responses
        with calls in which one is the model's mistake (could not be read, another dialect, unknown tool, wrong type).
        Empty where nothing was watched.
    """
    counted = [info for info in infos if info.get("calls/count") is not None]
    if not counted:
        return {}
    calling = [info for info in counted if info["calls/count"] > 0]
    mistaken = sum(any(info.get(name) for name in _MISTAKES) for info in calling)
    return {
        "rollout/no_call_share": (len(counted) - len(calling)) / len(counted),
        "rollout/invalid_call_share": mistaken / max(len(calling), 1),
    }


def zero_variance_share(scores: Iterable[tuple[Hashable, float]]) -> float | None:
    """Return the share of groups whose members all earned the same, among those of at least two.

    Args:
        scores: Group and score of each trajectory.

    Returns:
        The share; None where no group has two members.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for group, score in scores:
        groups[group].append(score)
    several = [members for members in groups.values() if len(members) > 1]
    if not several:
        return None
    return sum(max(members) - min(members) < 1e-9 for members in several) / len(several)


@dataclass(frozen=True)
class Thresholds:
    """When an alarm goes off; null switches one off. The block `trainer.toolrl.alarms` of a recipe."""

    no_call_share: float | None = 0.8
    """At least this share of trajectories (of responses, in a run of single turns) calls no tool."""
    invalid_call_share: float | None = 0.5
    """At least this share of calls is the model's mistake (of responses with calls, in a run of single turns: has such
    a call)."""
    steps_ratio: float | None = 2.0
    """Steps a trajectory are more than so many times, or less than one so-manieth of, their mean over the first
    `patience` steps; a run that is resumed begins anew. A run of single turns has no such
    number."""
    entropy: float | None = 0.02
    """Entropy of the policy, in nats a token, is at most this (`actor/entropy`, where verl computes it)."""
    zero_variance_share: float | None = 0.9
    """At least this share of groups earns one score, so that a group-relative advantage is 0."""
    lost_share: float | None = 0.02
    """At least this share of sessions is lost to infrastructure."""
    patience: int = 3
    """Steps in a row before an alarm other than `lost_share` goes off."""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any] | None) -> Thresholds:
        """Read the block.

        Raises:
            ConfigError: If a key is unknown or a value is no number.
        """
        names = [each.name for each in fields(cls)]
        for key, value in (data or {}).items():
            if key not in names:
                raise ConfigError(f"trainer.toolrl.alarms.{key}: unknown{nearest(key, names)}; known: {names}")
            allowed = value is None and key != "patience"
            if not allowed and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                raise ConfigError(f"trainer.toolrl.alarms.{key}: wanted a number >= 0 or null, found {value!r}")
        return cls(**(data or {}))


_ADVICE = {
    "no_call_share": "the model answers without tools: look at the prompt's list of tools, the reward of an answer "
    "that was guessed, and a longer warm-up",
    "invalid_call_share": "look at the trajectories for the mistake that they share; a warm-up on the form helps, and "
    "a reward that punishes mistakes",
    "steps": "trajectories grow or shrink: look at what a needless call costs and an early answer earns",
    "entropy": "the policy has collapsed: a smaller learning rate, a KL term, or an earlier checkpoint",
    "zero_variance_share": "groups teach nothing: easier or harder rows, algorithm.filter_groups, a finer reward",
    "lost_share": "see the reasons in the log; none of it reaches the gradient, but what fails with the kind of the "
    "task makes the rest a biased sample",
}
_NUMBERS = {
    **{name: f"rollout/{name}" for name in _ADVICE},
    "steps": "rollout/steps/mean",
    "entropy": "actor/entropy",
}
"""Alarm -> the number that it looks at."""


class Alarms:
    """Watches the numbers of a run.

    Args:
        thresholds: When.
        asked: Names of the thresholds that the user wrote down.
    """

    def __init__(self, thresholds: Thresholds, asked: Container[str] = ()) -> None:
        self.thresholds = thresholds
        self._asked = asked
        self._logged: list[str] | None = None
        self._since: Counter[str] = Counter()
        self._on: set[str] = set()
        self._first_steps: list[float] = []

    def check(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Look at one step.

        Args:
            metrics: Of the step; an alarm whose number is missing stays as it is.

        Returns:
            `alarm/<name>` as 0 or 1, the same keys every time, of the alarms whose number the first step has; and what
            the log should say now: alarms that went off or ended with this step, and in the first step thresholds that
            were asked for and have no number.
        """
        limits = self.thresholds
        said: list[str] = []
        if self._logged is None:
            self._logged = [name for name in _ADVICE if _NUMBERS[name] in metrics]
            said += self._without_number(self._logged)
        for name, value, over, wanted in self._looks(metrics):
            self._since[name] = self._since[name] + 1 if over else 0
            patience = 1 if name == "lost_share" else limits.patience
            if self._since[name] >= patience and name not in self._on:
                self._on.add(name)
                said.append(f"ALARM {name}: {value:.3g} ({wanted}) for {self._since[name]} step(s); {_ADVICE[name]}")
            elif not over and name in self._on:
                self._on.discard(name)
                said.append(f"alarm {name} is over: {value:.3g} ({wanted})")
        return {f"alarm/{name}": float(name in self._on) for name in self._logged}, said

    def _without_number(self, logged: Container[str]) -> Iterable[str]:
        for name in _ADVICE:
            option = "steps_ratio" if name == "steps" else name
            if name not in logged and option in self._asked and getattr(self.thresholds, option) is not None:
                yield f"trainer.toolrl.alarms.{option}: this step has no number for it; without one it cannot go off"

    def _looks(self, metrics: Mapping[str, float]) -> Iterable[tuple[str, float, bool, str]]:
        limits = self.thresholds
        for name in ("no_call_share", "invalid_call_share", "zero_variance_share", "lost_share"):
            value, limit = metrics.get(_NUMBERS[name]), getattr(limits, name)
            if value is not None and limit is not None:
                yield name, value, value >= limit > 0 or value > limit, f"alarm at {limit}"
        entropy = metrics.get(_NUMBERS["entropy"])
        if entropy is not None and limits.entropy is not None:
            yield "entropy", entropy, entropy <= limits.entropy, f"alarm at {limits.entropy}"
        steps = metrics.get(_NUMBERS["steps"])
        if steps is not None and limits.steps_ratio is not None:
            if len(self._first_steps) < max(limits.patience, 1):
                self._first_steps.append(steps)
                return
            usual = sum(self._first_steps) / len(self._first_steps)
            over = not usual / limits.steps_ratio <= steps <= usual * limits.steps_ratio
            yield "steps", steps, over, f"{usual:.3g} at first, alarm at {limits.steps_ratio} times more or less"
