"""What a reward is, and the names under which rewards are configured.

A *reward* is a callable that turns a response and its ground truth into a `Reward`; one that takes a `trajectory`
scores a whole rollout instead (`rewards.trajectory`). `make_reward` builds one from a name and options, as a recipe or
the command line gives them; a user's own class joins with `register_reward`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from verl_toolrl.errors import ConfigError, nearest

__all__ = ["Reward", "RewardFunction", "check_options", "known_rewards", "make_reward", "register_reward"]


@dataclass(frozen=True)
class Reward:
    """What a reward answers for one response."""

    score: float
    """The reward: finite, the sum of `components`."""
    components: dict[str, float]
    """The parts, with the same keys for every response of one configured reward, for logs and for GDPO."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was seen but is no part of the sum (surplus calls, repairs, schema errors); the same keys every time."""


class RewardFunction(Protocol):
    """A configured reward."""

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response.

        Args:
            response: What the model wrote, without the prompt (an OpenAI message where the dialect is `openai`).
            ground_truth: The reference: ToolRL's text, or a list of calls.
            tools: Schemas of the tools on offer; a list, JSON text, or None.
            step: Global step of the trainer; 0 before training.
            total_steps: Length of the run, for schedules over a share of it.

        Raises:
            DatasetError: If the ground truth cannot be read.
            ConfigError: If the response is not text, or a schedule needs what was not given.
        """
        ...


Factory = Callable[..., Any]
F = TypeVar("F", bound=Factory)

_REGISTRY: dict[str, Factory] = {}

# Ours, imported when first asked for, so that `import verl_toolrl.rewards` stays light.
_BUILT_IN = {
    "toolrl": "verl_toolrl.rewards.toolrl",
    "tool_n1": "verl_toolrl.rewards.tool_n1",
    "mix": "verl_toolrl.rewards.mix",
    "steptool": "verl_toolrl.rewards.steptool",
}


def register_reward(name: str) -> Callable[[F], F]:
    """Register a class or factory of rewards under `name`; its keyword arguments become the options of a recipe.

    Raises:
        ConfigError: If another object holds the name.
    """

    def register(factory: F) -> F:
        holder = _REGISTRY.get(name)
        if holder is not None and _identity(holder) != _identity(factory):
            raise ConfigError(f"reward {name!r} is already registered by {_identity(holder)}")
        if name in _BUILT_IN and factory.__module__ != _BUILT_IN[name]:
            raise ConfigError(f"reward {name!r} is already registered by {_BUILT_IN[name]}")
        _REGISTRY[name] = factory
        return factory

    return register


def known_rewards() -> list[str]:
    """Names that `make_reward` accepts, sorted."""
    return sorted({*_REGISTRY, *_BUILT_IN})


def make_reward(name: str, **options: Any) -> RewardFunction:
    """Build a configured reward.

    Args:
        name: A registered name (`known_rewards()`), or where a user's class, factory or function is:
            `package.module:name` or `path/to/file.py:name`.
        **options: Keyword arguments of that reward.

    Raises:
        ConfigError: If the name or an option is unknown (the nearest valid one is named), or options contradict.
    """
    if ":" in name:
        from verl_toolrl.rewards.function import FunctionReward, OwnReward, load_object

        found = load_object(name)
        if not callable(found):
            raise ConfigError(f"{name!r} is no class or function, but {type(found).__name__}")
        if not isinstance(found, type) and "response" in inspect.signature(found).parameters:
            return _build(name, FunctionReward, {"path": name, **options})
        if not isinstance(found, type) and "trajectory" in inspect.signature(found).parameters:
            from verl_toolrl.rewards.trajectory import TrajectoryFunction

            return cast(RewardFunction, TrajectoryFunction(name, options))
        return cast(RewardFunction, OwnReward(name, _build(name, found, options)))
    if name not in _REGISTRY and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _REGISTRY:
        known = known_rewards()
        raise ConfigError(f"unknown reward {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    made = _build(name, _REGISTRY[name], options)
    if name in _BUILT_IN:
        return made
    from verl_toolrl.rewards.function import OwnReward

    return cast(RewardFunction, OwnReward(name, made))


def _build(name: str, factory: Factory, options: Mapping[str, Any]) -> RewardFunction:
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        check_options(f"reward {name!r}", options, [parameter.name for parameter in parameters])
    missing = [
        p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in options
    ]
    if missing:
        raise ConfigError(f"reward {name!r}: option {missing[0]!r} is missing")
    return factory(**options)


def check_options(where: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise for the first option that is not known.

    Raises:
        ConfigError: Naming the option and the nearest valid one.
    """
    known = list(known)
    for option in options:
        if option not in known:
            raise ConfigError(f"{where}: unknown option {option!r}{nearest(option, known)}; known: {', '.join(known)}")


def _identity(factory: Factory) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"
