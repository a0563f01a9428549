"""What a step's trajectories look like as numbers, and when the log says so loudly."""

from __future__ import annotations

from typing import Any

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.rollout.health import Alarms, Thresholds, measure, zero_variance_share
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory

CALL = ToolCall("look_up", {"key": "a"})


def trajectory(*steps: Step, stop: StopReason = StopReason.FINISHED) -> dict[str, Any]:
    return Trajectory(steps, stop).to_dict()


def step(*outcomes: Outcome, unparsed: tuple[str, ...] = (), truncated: bool = False) -> Step:
    calls = tuple(ToolCall("look_up", {"key": str(i)}) for i in range(len(outcomes)))
    results = tuple(ToolResult(outcome, "x", seconds=0.5, truncated=truncated) for outcome in outcomes)
    return Step("text", calls, results, unparsed=unparsed)


def test_the_numbers_of_a_small_batch() -> None:
    numbers = measure(
        [
            trajectory(Step("I know.")),
            trajectory(step(Outcome.OK, Outcome.MODEL_ERROR), step(Outcome.TOOL_ERROR), Step("Done.")),
            trajectory(step(unparsed=("cut off",)), step(Outcome.OK, truncated=True), stop=StopReason.MAX_STEPS),
            trajectory(Step("Cut", (CALL,)), stop=StopReason.MAX_TOKENS),
        ]
    )
    # 4 calls were answered, 1 was written in an answer that was cut, 1 could not be read: 6 tries.
    wanted = {
        "rollout/steps/mean": 7 / 4,
        "rollout/steps/max": 3,
        "rollout/calls/mean": 5 / 4,
        "rollout/calls/max": 3,
        "rollout/no_call_share": 1 / 4,
        "rollout/invalid_call_share": 2 / 6,
        "rollout/unread_call_share": 1 / 6,
        "rollout/tool_error_share": 1 / 6,
        # The second step of the second trajectory repeats the first call of its first one.
        "rollout/repeated_call_share": 1 / 6,
        "rollout/cut_answer_share": 1 / 4,
        "rollout/tool_seconds/mean": 0.5,
        "rollout/stop/finished": 2 / 4,
        "rollout/stop/max_steps": 1 / 4,
        "rollout/stop/max_tokens": 1 / 4,
        "rollout/stop/max_calls": 0,
        "rollout/stop/max_seconds": 0,
        "rollout/stop/malformed": 0,
    }
    assert wanted == pytest.approx(numbers)


def test_every_batch_has_the_same_keys() -> None:
    assert measure([trajectory(Step(""))]).keys() == measure([trajectory(step(Outcome.REFUSED))] * 3).keys()
    assert {} == measure([])


VARIANCE = [
    pytest.param([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 1.0)], 0.5, id="one of two"),
    pytest.param([("a", 1.0), ("b", 0.0)], None, id="no group of two"),
    pytest.param([("a", 0.1 + 0.2), ("a", 0.3)], 1.0, id="rounding is no difference"),
]


@pytest.mark.parametrize(("scores", "share"), VARIANCE)
def test_groups_that_teach_nothing(scores: list[tuple[str, float]], share: float | None) -> None:
    assert share == zero_variance_share(scores)


def run_alarm(name: str, values: list[float], **thresholds: Any) -> tuple[list[float], list[str]]:
    key = {"entropy": "actor/entropy", "steps": "rollout/steps/mean"}.get(name, f"rollout/{name}")
    alarms, states, said = Alarms(Thresholds(**thresholds)), [], []
    for value in values:
        state, lines = alarms.check({key: value})
        states.append(state[f"alarm/{name}"])
        said += lines
    return states, said


CASES = [
    pytest.param("no_call_share", [0.9, 0.9, 0.9, 0.9, 0.1], [0, 0, 1, 1, 0], {}, id="after three steps"),
    pytest.param("no_call_share", [0.9, 0.9, 0.1, 0.9], [0, 0, 0, 0], {}, id="not after two"),
    pytest.param("lost_share", [0.0, 0.1, 0.0], [0, 1, 0], {}, id="infrastructure at once"),
    pytest.param("lost_share", [0.0, 0.1], [0, 0], {"lost_share": None}, id="switched off"),
    pytest.param("entropy", [0.5, 0.01, 0.01], [0, 0, 1], {"patience": 2}, id="entropy is gone"),
    pytest.param("steps", [2.0, 2.0, 5.0, 5.0, 2.0], [0, 0, 0, 1, 0], {"patience": 2}, id="longer trajectories"),
    pytest.param("steps", [4.0, 4.0, 1.5, 1.5], [0, 0, 0, 1], {"patience": 2}, id="shorter trajectories"),
    pytest.param("zero_variance_share", [1.0, 1.0, 1.0], [0, 0, 1], {}, id="nothing to learn from"),
    pytest.param("invalid_call_share", [0.5, 0.6, 0.7], [0, 0, 1], {}, id="nonsense calls"),
]


@pytest.mark.parametrize(("name", "values", "wanted", "thresholds"), CASES)
def test_an_alarm_goes_off_and_ends(
    name: str, values: list[float], wanted: list[float], thresholds: dict[str, Any]
) -> None:
    states, said = run_alarm(name, values, **thresholds)
    assert wanted == states
    changes = sum(a != b for a, b in zip([0, *wanted], wanted))
    assert changes == len(said) and all(name in line for line in said)


def test_an_alarm_whose_number_is_missing_stays_as_it_is() -> None:
    alarms = Alarms(Thresholds())
    assert 1.0 == alarms.check({"rollout/lost_share": 0.5})[0]["alarm/lost_share"]
    assert 1.0 == alarms.check({})[0]["alarm/lost_share"]


@pytest.mark.parametrize("block", [{"no_calls": 0.5}, {"entropy": "low"}, {"patience": None}, {"lost_share": -1}])
def test_a_wrong_threshold_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(block))):
        Thresholds.from_mapping(block)
