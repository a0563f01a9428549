"""The vocabulary survives JSON and pickle, and knows which outcomes must teach nothing."""

from __future__ import annotations

import json
import pickle

import pytest

from verl_toolrl.errors import DatasetError, UnknownNameError
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory


def trajectory(outcome: Outcome = Outcome.OK) -> Trajectory:
    call = ToolCall("get_weather", {"city": "Paris", "days": [1, 2]}, span=(3, 40))
    step = Step("text", (call,), (ToolResult(outcome, "sunny", value={"sky": 1}),), span=(0, 12), seconds=0.5)
    return Trajectory(
        (step, Step("It is sunny.", span=(20, 25))), messages=({"role": "user", "content": "?"},), id="s1"
    )


def test_a_trajectory_survives_json() -> None:
    assert trajectory() == Trajectory.from_dict(json.loads(json.dumps(trajectory().to_dict())))


def test_a_trajectory_survives_pickle() -> None:
    assert trajectory() == pickle.loads(pickle.dumps(trajectory()))


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [
        (Outcome.OK, False),
        (Outcome.MODEL_ERROR, False),
        (Outcome.TOOL_ERROR, False),
        (Outcome.REFUSED, False),
        (Outcome.TIMEOUT, True),
        (Outcome.INFRA_ERROR, True),
    ],
)
def test_only_failures_the_model_did_not_cause_lose_a_trajectory(outcome: Outcome, lost: bool) -> None:
    assert lost == trajectory(outcome).lost_to_infrastructure


def test_a_session_that_ended_in_a_failure_is_lost() -> None:
    assert Trajectory((Step("x"),), StopReason.INFRA_ERROR).lost_to_infrastructure


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(DatasetError, match="version 99, this package reads 1"):
        Trajectory.from_dict({**trajectory().to_dict(), "version": 99})


def test_a_missing_field_names_the_trajectory() -> None:
    data = trajectory().to_dict()
    del data["steps"][0]["text"]
    with pytest.raises(DatasetError, match="'s1'.*'text'"):
        Trajectory.from_dict(data)


def test_an_unknown_name_suggests_the_nearest_and_survives_pickle() -> None:
    error = pickle.loads(pickle.dumps(UnknownNameError("reward", "toolr", ["toolrl", "steptool"])))
    assert str(error) == "unknown reward 'toolr', did you mean 'toolrl'?; known: steptool, toolrl"
