"""How a trajectory travels through verl: as JSON text in `extra_fields`, because verl's layout holds texts and numbers.

The agent loop writes it, the reward manager reads it and may answer with a reward for each step, which the output of
the loop places on tokens (`trajectory_output`), and the trainer reads both for its log. Nothing here imports verl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.reward_info import STEP_REWARDS, refuse_taken_names, reward_info
from verl_toolrl.rewards import Reward, unscheduled
from verl_toolrl.rewards.trajectory import score_trajectory
from verl_toolrl.rollout.wire import dumps, loads
from verl_toolrl.trajectory import TRAJECTORY_SCHEMA_VERSION, Trajectory

__all__ = [
    "STEP_REWARDS",
    "TRAJECTORY",
    "dump_trajectory",
    "read_trajectory",
    "step_rewards_of",
    "trajectory_result",
]

TRAJECTORY = "toolrl_trajectory"
"""Key of `extra_fields` with the trajectory as JSON text."""


def dump_trajectory(trajectory: Trajectory, appended: Sequence[Sequence[Mapping[str, Any]]] = ()) -> str:
    """Return what `Trajectory.to_dict` says, as JSON text.

    Args:
        trajectory: What was rolled out.
        appended: Messages that followed each step but the last, as the model read them; for the journal, under the key
            `appended`, which `read_trajectory` passes over.
    """
    # The dataclass itself is written, which takes a tenth of the time of a copy into dicts.
    told, text = dumps(list(appended)), dumps(trajectory)
    slow = " " if " " in (told[0], text[0]) else ""  # by which `loads` knows what orjson would refuse
    return f'{slow}{{"version":{TRAJECTORY_SCHEMA_VERSION},"appended":{told},{text.lstrip()[1:]}'


def read_trajectory(extra_fields: Mapping[str, Any]) -> Trajectory | None:
    """Return the trajectory that a loop of ours put into `extra_fields`; None for an output of another loop.

    Raises:
        DatasetError: If its version is newer than this package.
    """
    text = extra_fields.get(TRAJECTORY)
    return None if text is None else Trajectory.from_dict(loads(text))


def step_rewards_of(extra_fields: Mapping[str, Any]) -> list[float] | None:
    """Return the rewards of the steps, or None where the reward gave none."""
    text = extra_fields.get(STEP_REWARDS)
    return None if text is None else loads(text)


def trajectory_result(
    reward: Callable[..., Any], trajectory: Trajectory | None, step: int, total_steps: int | None
) -> dict[str, Any]:
    """Score a trajectory for verl's reward manager.

    Returns:
        `reward_score` and `reward_extra_info`; the latter with the steps' rewards as JSON text where the reward gives
        some.

    Raises:
        ConfigError: If the loop recorded no trajectory, or a component has a name of ours.
    """
    if trajectory is None:
        raise ConfigError(
            "this reward scores trajectories, and the agent loop records none; set actor_rollout_ref.rollout.agent."
            "default_agent_loop to toolrl_dialogue, toolrl_native or toolrl_react"
        )
    result, rewards = score_trajectory(reward, trajectory, step=step, total_steps=total_steps)
    refuse_taken_names(reward, result.components, trajectory=True)
    info: dict[str, Any] = {**reward_info(result, _at_end(reward, result, trajectory, step, total_steps), {})}
    if rewards is not None:
        info[STEP_REWARDS] = dumps(rewards)
    return {"reward_score": result.score, "reward_extra_info": info}


def _at_end(
    reward: Callable[..., Any], result: Reward, trajectory: Trajectory, step: int, total_steps: int | None
) -> Reward:
    """Return what the reward would give without its schedules."""
    plain = unscheduled(reward)
    if plain == reward:
        return result
    return score_trajectory(plain, trajectory, step=step, total_steps=total_steps)[0]
