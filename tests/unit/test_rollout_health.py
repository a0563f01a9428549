"""What a step's trajectories look like as numbers, and when the log says so loudly."""

from __future__ import annotations

from typing import Any

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import write_response
from verl_toolrl.rewards.watch import Watcher
from verl_toolrl.rollout.health import Alarms, Thresholds, measure, measure_responses, zero_variance_share
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


TOOLS = [{"name": "look_up", "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}]
SILENT = write_response([], thought="a", response="I know.")
RIGHT = write_response([CALL], thought="a")
MISTAKES = [
    pytest.param("<think> a </think>\n<tool_call>\n{\n</tool_call>", id="unreadable"),
    pytest.param("<think> a </think>\n<function=look_up>\n<parameter=key>\na\n</parameter>\n</function>", id="foreign"),
    pytest.param(write_response([ToolCall("look", {"key": "a"})], thought="a"), id="unknown tool"),
    pytest.param(write_response([ToolCall("look_up", {"key": 1})], thought="a"), id="wrong type"),
]


def watched(*responses: str) -> list[dict[str, float]]:
    return [Watcher()(response=response, ground_truth=RIGHT, tools=TOOLS) for response in responses]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_single_turns_are_measured_by_what_the_reward_watched(mistake: str) -> None:
    # One of four responses is without a call, one of the other three has a mistake.
    wanted = {"rollout/no_call_share": 1 / 4, "rollout/invalid_call_share": 1 / 3}
    assert wanted == measure_responses(watched(SILENT, RIGHT, RIGHT, mistake))
    assert wanted.keys() <= measure([trajectory(Step(""))]).keys()


def test_responses_that_nobody_watched_have_no_numbers() -> None:
    assert {} == measure_responses([{"score": 1.0}]) == measure_responses([])
    assert measure_responses(watched(SILENT)).keys() == measure_responses(watched(RIGHT)).keys()


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


def test_only_alarms_with_a_number_in_the_first_step_are_logged() -> None:
    alarms = Alarms(Thresholds(patience=1))
    first, _ = alarms.check({"rollout/no_call_share": 0.0, "rollout/lost_share": 0.0})
    assert {"alarm/no_call_share": 0.0, "alarm/lost_share": 0.0} == first
    # A number that comes later is looked at and said, and the keys stay.
    later, said = alarms.check({"rollout/no_call_share": 0.9, "actor/entropy": 0.0})
    assert {"alarm/no_call_share": 1.0, "alarm/lost_share": 0.0} == later
    assert ["ALARM no_call_share", "ALARM entropy"] == [line.split(":")[0] for line in said]


def test_a_threshold_that_was_asked_for_and_has_no_number_is_said_once() -> None:
    block = {"no_call_share": 0.9, "steps_ratio": 2.0, "entropy": None, "patience": 3}
    alarms = Alarms(Thresholds.from_mapping(block), asked=block)
    said = [alarms.check({"rollout/no_call_share": 0.1})[1] for _ in range(2)]
    assert [1, 0] == list(map(len, said)) and "alarms.steps_ratio" in said[0][0]


@pytest.mark.parametrize("block", [{"no_calls": 0.5}, {"entropy": "low"}, {"patience": None}, {"lost_share": -1}])
def test_a_wrong_threshold_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(block))):
        Thresholds.from_mapping(block)
