"""Rewards: from a response and its ground truth to a score and its components.

    from verl_toolrl.rewards import make_reward
    reward = make_reward("toolrl", mode="robust")
    result = reward(response=text, ground_truth=truth, tools=tools, step=12, total_steps=105)
    result.score, result.components

One module a scheme, named after its source. Everything here is pure: no clock, random number, environment variable,
print or global state, so the same input gives the same number in any process or thread. A configured reward is a small
frozen dataclass and pickles into Ray workers.
"""

from verl_toolrl.rewards.base import Reward, RewardFunction, known_rewards, make_reward, register_reward
from verl_toolrl.rewards.configured import (
    answered_components,
    component_names,
    configured_reward,
    configured_watcher,
    expect_components,
    reads_special_tokens,
    unscheduled,
)

__all__ = [
    "Reward",
    "RewardFunction",
    "answered_components",
    "component_names",
    "configured_reward",
    "configured_watcher",
    "expect_components",
    "known_rewards",
    "make_reward",
    "reads_special_tokens",
    "register_reward",
    "unscheduled",
]
