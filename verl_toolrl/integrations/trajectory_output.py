"""What a rollout hands to verl: tokens, mask, the trajectory itself, and rewards on the tokens that earned them.

The trajectory travels as JSON in `extra_fields`, because verl's data layout holds texts and numbers. The reward manager
reads it there and may answer with a reward for each step; `as_dict`, which verl calls after the reward is known, puts
each on the last token of its step. A reward without steps goes to the last token that the model wrote (verl's own form
puts it on the last token of all, which an estimator drops where a tool wrote it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_toolrl.credit import Steps, pad_steps, place_final_reward, place_step_rewards
from verl_toolrl.errors import ConfigError
from verl_toolrl.rewards.trajectory import score_trajectory
from verl_toolrl.trajectory import TRAJECTORY_SCHEMA_VERSION, Trajectory

__all__ = [
    "STEP_REWARDS",
    "TRAJECTORY",
    "TrajectoryOutput",
    "dump_trajectory",
    "read_trajectory",
    "step_rewards_of",
    "trajectory_result",
]

TRAJECTORY = "toolrl_trajectory"
"""Key of `extra_fields` with the trajectory as JSON text."""
STEP_REWARDS = "toolrl_step_rewards"
"""Key with the rewards of the steps as JSON text: in `reward_extra_info` from the reward manager, then in
`extra_fields`, so that nobody averages a text."""


def dump_trajectory(trajectory: Trajectory) -> str:
    """Return what `Trajectory.to_dict` says, as JSON text."""
    # orjson writes dataclasses and enums by itself, in a tenth of the time of a copy into dicts.
    body = orjson.dumps(trajectory, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return f'{{"version":{TRAJECTORY_SCHEMA_VERSION},{body.decode()[1:]}'


def read_trajectory(extra_fields: Mapping[str, Any]) -> Trajectory | None:
    """Return the trajectory that a loop of ours put into `extra_fields`; None for an output of another loop.

    Raises:
        DatasetError: If its version is newer than this package.
    """
    text = extra_fields.get(TRAJECTORY)
    return None if text is None else Trajectory.from_dict(orjson.loads(text))


def step_rewards_of(extra_fields: Mapping[str, Any]) -> list[float] | None:
    """Return the rewards of the steps, or None where the reward gave none."""
    text = extra_fields.get(STEP_REWARDS)
    return None if text is None else orjson.loads(text)


class TrajectoryOutput(AgentLoopOutput):
    """verl's output with the rewards where they belong."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that verl stores; `rm_scores` is dense where the reward gave step rewards."""
        info = self.extra_fields.get("reward_extra_info")
        rewards = info.pop(STEP_REWARDS, None) if isinstance(info, dict) else None
        if rewards is not None:
            self.extra_fields[STEP_REWARDS] = rewards
        score = self.reward_score
        fields = super().as_dict()
        if score is not None:
            mask = fields["response_mask"].unsqueeze(0)
            if rewards is None:
                placed = place_final_reward(torch.tensor([score], dtype=torch.float32), mask)
            else:
                placed = _placed(orjson.loads(rewards), self.extra_fields, mask)
            fields["rm_scores"] = placed[0].float()
        return fields


def _placed(rewards: Sequence[float], extra_fields: Mapping[str, Any], mask: torch.Tensor) -> torch.Tensor:
    spans = [step["span"] for step in orjson.loads(extra_fields[TRAJECTORY])["steps"]]
    step_rewards, offsets = pad_steps([list(rewards)], [[(int(start), int(end)) for start, end in spans]])
    return place_step_rewards(step_rewards, Steps(offsets, mask))


def trajectory_result(
    reward: Callable[..., Any], trajectory: Trajectory | None, step: int, total_steps: int | None
) -> dict[str, Any]:
    """Score a trajectory for verl's reward manager.

    Returns:
        `reward_score` and `reward_extra_info`; the latter with the steps' rewards as JSON text where the reward gives
        some.

    Raises:
        ConfigError: If the loop recorded no trajectory.
    """
    if trajectory is None:
        raise ConfigError(
            "this reward scores trajectories, and the agent loop records none; set actor_rollout_ref.rollout.agent."
            "default_agent_loop to toolrl_dialogue, toolrl_native or toolrl_react"
        )
    result, rewards = score_trajectory(reward, trajectory, step=step, total_steps=total_steps)
    info: dict[str, Any] = {"score": result.score, **result.components, **result.metrics}
    if rewards is not None:
        info[STEP_REWARDS] = orjson.dumps(rewards).decode()
    return {"reward_score": result.score, "reward_extra_info": info}
