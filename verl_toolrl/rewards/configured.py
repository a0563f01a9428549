"""A reward as a recipe configures it, and what can be known of it before it has scored anything.

reward:
  reward_kwargs: {mode: released, coarse: true}                       # `toolrl` and its options
  reward_kwargs: {reward: tool_n1, dialect: toolrl}                   # another registered reward
  reward_kwargs: {reward: mix, rewards: {toolrl: {}, tool_n1: {weight: 0.5}}}
  reward_kwargs: {reward: "my_package.rewards:score"}                 # a user's function or class
  reward_kwargs: {reward: "my_rewards.py:score", watch: {dialect: hermes}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import DIALECTS
from verl_toolrl.rewards.base import RewardFunction, make_reward
from verl_toolrl.rewards.function import Answers
from verl_toolrl.rewards.watch import Watcher, make_watcher

__all__ = [
    "answered_components",
    "component_names",
    "configured_reward",
    "configured_watcher",
    "expect_components",
    "reads_special_tokens",
    "unscheduled",
]


def configured_reward(reward_kwargs: Mapping[str, Any]) -> RewardFunction:
    """Build the reward of `reward.reward_kwargs`.

    Raises:
        ConfigError: If an option is unknown or contradicts another.
    """
    options = {str(key): value for key, value in reward_kwargs.items() if key != "watch"}
    return make_reward(str(options.pop("reward", "toolrl")), **options)


def configured_watcher(reward_kwargs: Mapping[str, Any], reward: RewardFunction) -> Watcher:
    """Build what watches responses beside the reward.

    Args:
        reward_kwargs: The whole node; its key `watch` says how a response is read where the reward does not.
        reward: The configured reward.

    Raises:
        ConfigError: If an option under `watch` is unknown.
    """
    options = reward_kwargs.get("watch") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"reward_kwargs.watch must be a mapping, got {options!r}")
    return make_watcher(reward, {str(key): value for key, value in options.items()})


def reads_special_tokens(reward: RewardFunction, watcher: Watcher) -> bool:
    """Whether a response must be decoded with its special tokens, because a dialect that is read here needs them."""
    special = [name for name, dialect in DIALECTS.items() if dialect.special_tokens]
    return any(name in special for name in (watcher.dialect, *_dialects(reward)))


def _dialects(reward: Any) -> Iterator[Any]:
    """Yield the dialects in which a reward and the parts of a mix read."""
    yield getattr(reward, "dialect", None)
    for part in getattr(reward, "parts", ()):
        yield from _dialects(part[1])


def component_names(reward: RewardFunction) -> tuple[str, ...] | None:
    """Names of the components of a configured reward; None where only a call tells (a user's own)."""
    names = getattr(reward, "component_names", None)
    return None if names is None else tuple(names)


def answered_components(reward: RewardFunction) -> list[list[str] | None]:
    """Return which components a user's own rewards are held to by what they answered so far.

    Returns:
        An entry for each, those of a mix in its order; None for one that has not answered yet. Empty where all rewards
        are ours.
    """
    return [None if each.names is None else list(each.names) for each in _answers(reward)]


def expect_components(reward: RewardFunction, answered: Sequence[Sequence[str] | None], origin: str) -> None:
    """Hold a user's own rewards to what the same configuration answered in another process.

    Args:
        reward: Built from that configuration; called by nobody yet.
        answered: What `answered_components` said there.
        origin: How the message of an error names that answer.
    """
    for each, names in zip(_answers(reward), answered, strict=True):
        if names is not None:
            each.expect(names, origin)


def _answers(reward: Any) -> Iterator[Answers]:
    """Yield what holds the rewards of a user to their answers."""
    own = getattr(reward, "_answers", None)
    if isinstance(own, Answers):
        yield own
        return  # what a user's class is made of is its own
    for part in getattr(reward, "parts", ()):
        yield from _answers(part[1])


def unscheduled(reward: RewardFunction) -> RewardFunction:
    """Return the reward without its schedules, so that its scores can be compared across steps.

    A schedule of a recipe (a weight, a length target) has the last value that it lists, whether or not the run reaches
    it. Those of the paper and of the released code are switched off: the ranges and the length target that hold without
    them. A user's function is told that every step is the last. A reward without a schedule is returned as it is.
    """
    plain = getattr(reward, "unscheduled", None)
    return reward if plain is None else plain()
