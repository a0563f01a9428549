"""Rewards of whole trajectories: a user's function, step rewards, and where they are refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rewards import make_reward
from verl_toolrl.rewards.trajectory import empty_trajectory, need_response_reward, score_trajectory, takes_trajectory
from verl_toolrl.trajectory import Outcome, Step, ToolCall, ToolResult, Trajectory

FUNCTIONS = """
from verl_toolrl.rewards.steptool import StepRewards


def number(trajectory):
    return float(trajectory.final_answer == trajectory.extra["answer"])


def parts(*, trajectory, step=0, total_steps=None, weight=1.0):
    return {"solved": 1.0, "time": weight * step / total_steps}


def stepwise(trajectory):
    each = tuple(float(len(step.calls)) for step in trajectory.steps)
    return StepRewards(each, {"calls": each}, {})


def wrong_count(trajectory):
    return StepRewards((1.0,), {"calls": (1.0,)}, {})


def not_finite(trajectory):
    return float("nan")


def unsteady(trajectory):
    return StepRewards((0.0, 0.0), {trajectory.extra["answer"]: (0.0, 0.0)}, {})


def nan_part(trajectory):
    return StepRewards((0.0, 0.0), {"a": (0.0, float("nan"))}, {})


def greedy(trajectory, mood):
    return 0.0
"""

TRAJECTORY = Trajectory(
    (Step("", (ToolCall("f"),), (ToolResult(Outcome.OK, "5"),), (0, 3)), Step("5", span=(5, 6))), extra={"answer": "5"}
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    return str(tmp_path / "rewards.py")


def test_a_function_of_a_trajectory_gives_a_number(path: str) -> None:
    reward = make_reward(f"{path}:number")
    assert takes_trajectory(reward)
    result, steps = score_trajectory(reward, TRAJECTORY)
    assert (1.0, {"function": 1.0}, None) == (result.score, result.components, steps)


def test_a_function_gives_components_and_is_told_the_step(path: str) -> None:
    reward = make_reward(f"{path}:parts", weight=2.0)
    result, _ = score_trajectory(reward, TRAJECTORY, step=3, total_steps=12)
    assert (1.5, {"solved": 1.0, "time": 0.5}) == (result.score, result.components)


def test_a_function_gives_a_reward_for_each_step(path: str) -> None:
    result, steps = score_trajectory(make_reward(f"{path}:stepwise"), TRAJECTORY)
    assert (1.0, {"calls": 1.0}, (1.0, 0.0)) == (result.score, result.components, steps)


def test_a_configured_function_pickles(path: str) -> None:
    reward = pickle.loads(pickle.dumps(make_reward(f"{path}:parts", weight=2.0)))
    assert 1.5 == score_trajectory(reward, TRAJECTORY, step=3, total_steps=12)[0].score


WRONG = [
    ("wrong_count", "for 2 steps"),
    ("not_finite", "finite number"),
    ("nan_part", "nan_part: a must be a finite number"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_an_answer_that_cannot_train_is_refused(path: str, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        score_trajectory(make_reward(f"{path}:{name}"), TRAJECTORY)


def test_step_rewards_have_the_same_components_every_time(path: str) -> None:
    reward = make_reward(f"{path}:unsteady")
    score_trajectory(reward, TRAJECTORY)
    with pytest.raises(ConfigError, match="unsteady: the answer lacks '5' and adds '6'"):
        score_trajectory(reward, replace(TRAJECTORY, extra={"answer": "6"}))


BAD_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("parts", {"wieght": 2.0}, "did you mean 'weight'"),
    ("greedy", {}, "asks for 'mood'"),
]


@pytest.mark.parametrize(("name", "options", "text"), BAD_OPTIONS)
def test_options_of_a_function_are_checked(path: str, name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_reward(f"{path}:{name}", **options)


def test_steptool_is_a_reward_like_any_other() -> None:
    reward = make_reward("steptool", mode="paper", alpha=0.5)
    assert takes_trajectory(reward) and not takes_trajectory(make_reward("toolrl"))
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        make_reward("steptool", alpa=0.5)


def test_a_row_is_tried_with_a_model_that_said_nothing() -> None:
    row = {"prompt": [], "reward_model": {"ground_truth": "5"}, "extra_info": {"answer": "5", "none": None}}
    trajectory = empty_trajectory(row)
    assert {"answer", "data_source", "ground_truth", "global_step", "final_state"} == set(trajectory.extra)
    assert 0.0 == score_trajectory(make_reward("steptool"), trajectory)[0].score
    with pytest.raises(DatasetError, match="wanted_state"):
        score_trajectory(make_reward("steptool", verifier={"name": "state", "wanted": "wanted_state"}), trajectory)


def test_where_there_are_only_responses_it_is_refused() -> None:
    need_response_reward(make_reward("toolrl"), "toolrl")
    with pytest.raises(ConfigError, match="'steptool' scores whole trajectories"):
        need_response_reward(make_reward("steptool"), "steptool")
    with pytest.raises(ConfigError, match="mix: 'steptool': .* scores whole trajectories"):
        make_reward("mix", rewards={"steptool": {}})
