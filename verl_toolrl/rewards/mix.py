"""A weighted sum of rewards, each with its own options and a weight that may follow a schedule.

    reward: mix
    rewards:
      toolrl: {mode: robust}
      strict: {reward: tool_n1, dialect: toolrl, weight: "linear(0 -> 1)"}
      polite: {function: "my_rewards.py:polite", weight: 0.1}

Components are named `<entry>/<component>` and come weighted, so that the score is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.rewards.base import Reward, RewardFunction, make_reward, register_reward
from verl_toolrl.rewards.schedules import Schedule, parse_schedule
from verl_toolrl.rewards.trajectory import need_response_reward

__all__ = ["MixReward", "make_mix"]


@dataclass(frozen=True)
class MixReward:
    """Configured parts of a mix; `make_mix` builds it from options."""

    parts: tuple[tuple[str, RewardFunction, Schedule], ...]
    """Name, reward and weight of each entry."""

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response with every part; see `RewardFunction`."""
        components: dict[str, float] = {}
        metrics: dict[str, float] = {}
        for name, reward, weight in self.parts:
            result = reward(
                response=response, ground_truth=ground_truth, tools=tools, step=step, total_steps=total_steps
            )
            factor = weight.at(step, total_steps)
            components.update({f"{name}/{key}": value * factor for key, value in result.components.items()})
            metrics.update({f"{name}/{key}": value for key, value in result.metrics.items()})
        return Reward(math.fsum(components.values()), components, metrics)

    @property
    def component_names(self) -> tuple[str, ...] | None:
        """Names of the components; None where those of a part are not known."""
        names: list[str] = []
        for name, reward, _ in self.parts:
            inner = getattr(reward, "component_names", None)
            if inner is None:
                return None
            names += [f"{name}/{component}" for component in inner]
        return tuple(names)

    def unscheduled(self) -> MixReward:
        """The same mix with the last weights that its schedules list, and its parts without their schedules."""
        parts = [
            (name, reward.unscheduled() if hasattr(reward, "unscheduled") else reward, parse_schedule(weight.end))
            for name, reward, weight in self.parts
        ]
        return replace(self, parts=tuple(parts))


@register_reward("mix")
def make_mix(*, rewards: Mapping[str, Any]) -> MixReward:
    """Build a mix.

    Args:
        rewards: Entry -> its options. `reward` names a registered reward (default: the name of the entry), `function` a
            user's function; `weight` is a number or a schedule (default 1); the rest are options of the reward.

    Raises:
        ConfigError: If it is empty, or an entry is wrong.
    """
    if not isinstance(rewards, Mapping) or not rewards:
        raise ConfigError(f"mix: rewards must map names to options, got {rewards!r}")
    parts = []
    for name, entry in rewards.items():
        if entry is not None and not isinstance(entry, Mapping):
            raise ConfigError(f"mix: options of {name!r} must be a mapping, got {entry!r}")
        options = dict(entry or {})
        weight = parse_schedule(options.pop("weight", 1.0), f"mix: weight of {name!r}")
        function, kind = options.pop("function", None), options.pop("reward", None)
        if function is not None and kind is not None:
            raise ConfigError(f"mix: {name!r} has both 'reward' and 'function'")
        try:
            reward = make_reward(
                str(function if function is not None else kind if kind is not None else name), **options
            )
            need_response_reward(reward, str(name))
        except ConfigError as err:
            raise ConfigError(f"mix: {name!r}: {err}") from err
        parts.append((str(name), reward, weight))
    return MixReward(tuple(parts))
