"""The three modes of the StepTool reward, and what `robust` promises."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.rewards.is_solved import ExactMatch, NumericMatch
from verl_toolrl.rewards.steptool import PARTS, StepToolReward
from verl_toolrl.rewards.succ_calling import SuccCalling
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory


def step(name: str, answer: str, outcome: Outcome = Outcome.OK, **arguments: Any) -> Step:
    return Step(f"call {name}", (ToolCall(name, arguments),), (ToolResult(outcome, answer),))


def run(*steps: Step, answer: str, truth: str = "42", stop: StopReason = StopReason.FINISHED) -> Trajectory:
    return Trajectory((*steps, Step(answer)), stop, id="t", extra={"ground_truth": truth})


# A search that works and is used, a call that fails, one that works and is not used, and the answer.
MIXED = run(
    step("find", "code 7731"),
    step("open", "no such file", Outcome.TOOL_ERROR),
    step("clock", "quarter past noon"),
    answer="7731",
    truth="7731",
)


@pytest.mark.parametrize(
    ("reward", "expect"),
    [
        # One of three calls is useful: 0.5 / 3.
        (StepToolReward(), (0.5 / 3, 0.0, 0.0, 1.0)),
        (StepToolReward(bound=0.3), (0.1, 0.0, 0.0, 1.0)),
        # alpha SC + Con: (1 + 1), (0 + 0), (1 + 0).
        (StepToolReward(mode="paper"), (2.0, 0.0, 1.0, 1.0)),
        (StepToolReward(mode="paper", alpha=0.5, solved_weight=2), (1.5, 0.0, 0.5, 2.0)),
        (StepToolReward(mode="paper", contribution_weight=0.2), (1.2, 0.0, 1.0, 1.0)),
        # Characters in common: "code 7731" against "7731" is 4/9 >= 0.3; the others share no third.
        (StepToolReward(mode="paper", contribution="subsequence"), (2.0, 0.0, 1.0, 1.0)),
        # Released rules want {"error": "", "response": ...}: other text is a failed call that loses 26 characters.
        (StepToolReward(mode="released"), (0.0, 0.0, 0.0, 1.0)),
    ],
    ids=["robust", "bound", "paper", "alpha", "contribution", "subsequence", "released"],
)
def test_modes_reward_each_step(reward: StepToolReward, expect: tuple[float, ...]) -> None:
    found = reward(MIXED)
    assert expect == pytest.approx(found.step_rewards)
    assert sum(expect) == pytest.approx(found.score)
    assert found.score == pytest.approx(sum(found.components.values()))


def test_released_reads_the_first_call_only() -> None:
    good, bad = '{"error": "", "response": "Paris is sunny"}', '{"error": "x", "response": ""}'
    both = Step("", (ToolCall("a"), ToolCall("b")), (ToolResult(Outcome.OK, good), ToolResult(Outcome.TOOL_ERROR, bad)))
    final = Step("", (ToolCall("Finish", {"return_type": "give_answer", "final_answer": "Paris is sunny"}),))
    trajectory = Trajectory((both, final), extra={"ground_truth": "paris is sunny"})
    assert (1.0, 1.0) == StepToolReward(mode="released")(trajectory).step_rewards  # (1 + 1) / 2, IS
    # paper: means over both calls, (1 + 0) / 2 + (1 + 0) / 2.
    assert (1.0, 1.0) == StepToolReward(mode="paper", contribution="subsequence")(trajectory).step_rewards


def test_a_call_that_could_not_be_read_is_a_failed_call() -> None:
    trajectory = run(replace(step("find", "code 7731"), unparsed=("bad JSON",)), answer="7731", truth="7731")
    assert (0.25, 1.0) == pytest.approx(StepToolReward()(trajectory).step_rewards)  # one useful of two
    assert (1.0, 1.0) == pytest.approx(StepToolReward(mode="paper")(trajectory).step_rewards)  # 1/2 + 1/2


def test_a_step_without_a_call_earns_nothing_before_the_end() -> None:
    trajectory = run(Step("let me think"), answer="42")
    for mode in ("released", "paper", "robust"):
        assert (0.0, 1.0) == StepToolReward(mode=mode)(trajectory).step_rewards


@pytest.mark.parametrize(
    ("score", "expect"),
    [(1.0, 1.0), (0.9, 0.225), (0.5, 0.125), (0.0, 0.0)],  # below solved_at: 0.25 * score
)
def test_partial_success_stays_below_every_solved_trajectory(score: float, expect: float) -> None:
    assert expect == pytest.approx(StepToolReward(verifier=lambda trajectory, answer: score)(MIXED).step_rewards[-1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_a_wrong_answer_keeps_of_the_reward_for_calls_can_be_chosen(share: float) -> None:
    reward, useful = StepToolReward(unsolved_share=share), step("find", "code 7731")
    assert (0.5, 1.0) == pytest.approx(reward(run(useful, answer="7731", truth="7731")).step_rewards)
    assert (0.5 * share, 0.0) == pytest.approx(reward(run(useful, answer="7731", truth="42")).step_rewards)


@pytest.mark.parametrize("bound", [0.9, 2.0])
def test_a_wrong_answer_that_keeps_nothing_sets_no_limit_to_what_calls_earn_with_a_right_one(bound: float) -> None:
    reward, useful = StepToolReward(unsolved_share=0, bound=bound), step("find", "code 7731")
    assert (bound, 1.0) == pytest.approx(reward(run(useful, answer="7731", truth="7731")).step_rewards)


def test_without_a_share_for_wrong_answers_stopping_early_is_no_better_than_a_second_call_that_fails() -> None:
    useful, failed = step("find", "code 7731"), step("open", "no such file", Outcome.TOOL_ERROR, code=7731)
    early, late = run(useful, answer="7731"), run(useful, failed, answer="7731")
    assert StepToolReward()(early).score > StepToolReward()(late).score
    assert 0.0 == StepToolReward(unsolved_share=0)(early).score == StepToolReward(unsolved_share=0)(late).score


@pytest.mark.parametrize("stop", [StopReason.MAX_STEPS, StopReason.MAX_TOKENS, StopReason.MALFORMED])
def test_a_trajectory_that_was_cut_off_did_not_answer(stop: StopReason) -> None:
    assert StepToolReward()(run(answer="42", stop=stop)).score == 0.0


def test_a_failure_of_infrastructure_is_no_score() -> None:
    for trajectory in (
        run(step("find", "", Outcome.INFRA_ERROR), answer="42"),
        run(step("find", "", Outcome.TIMEOUT), answer="42"),
        run(answer="42", stop=StopReason.INFRA_ERROR),
    ):
        found = StepToolReward()(trajectory)
        assert not found.valid
        assert found.metrics["infra_error"] == 1.0
        assert len(found.step_rewards) == len(trajectory.steps)


def test_keys_are_the_same_every_time() -> None:
    found = [
        StepToolReward(mode=mode)(trajectory)
        for mode in ("released", "paper", "robust")
        for trajectory in (MIXED, run(answer="x"), run(answer="x", stop=StopReason.INFRA_ERROR), Trajectory(()))
    ]
    assert {PARTS} == {tuple(rewards.components) for rewards in found}
    assert len({tuple(rewards.metrics) for rewards in found}) == 1
    json.dumps([rewards.to_dict() for rewards in found], allow_nan=False)


def test_a_configured_reward_pickles() -> None:
    reward = StepToolReward(mode="paper", verifier={"name": "numeric", "relative": 0.1})
    again = pickle.loads(pickle.dumps(reward))
    assert again == reward
    assert again(MIXED) == reward(MIXED)
    assert again.verifier == NumericMatch(relative=0.1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mode": "robustt"}, UnknownNameError, "did you mean 'robust'"),
        ({"contribution": "lcs"}, UnknownNameError, "contribution rule 'lcs'"),
        ({"verifier": "exakt"}, UnknownNameError, "did you mean 'exact'"),
        ({"bound": 0.8}, ConfigError, "unsolved trajectory could beat a solved one"),
        ({"bound": 0.5, "solved_weight": 0.6}, ConfigError, "could beat"),
        ({"alpha": -1}, ConfigError, "alpha is -1"),
        ({"alpha": math.inf}, ConfigError, "alpha is inf"),
        ({"solved_at": 0}, ConfigError, "solved_at is 0"),
        ({"unsolved_share": 1.5}, ConfigError, "unsolved_share is 1.5"),
        ({"alpha": 0, "contribution_weight": 0}, ConfigError, "both 0"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        StepToolReward(**options)


def test_a_missing_reference_and_a_verifier_out_of_range_are_named() -> None:
    with pytest.raises(DatasetError, match="extra has no 'ground_truth'"):
        StepToolReward()(Trajectory((Step("x"),)))
    with pytest.raises(ConfigError, match="verifier returned 2.0 for 't'"):
        StepToolReward(verifier=lambda trajectory, answer: 2.0)(MIXED)


# --- what robust promises. Facts are a small pool, so that calls feed each other, repeat, and are quoted or not.

FACTS = [f"item-{n}{n}{n}" for n in range(8)]
fact_texts = st.lists(st.sampled_from(FACTS), max_size=3).map(" ".join)
calls = st.builds(
    lambda name, argument, answer, outcome: (ToolCall(name, {"q": argument}), ToolResult(outcome, answer)),
    st.sampled_from(["find", "open"]),
    fact_texts,
    fact_texts,
    st.sampled_from([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.TOOL_ERROR, Outcome.MODEL_ERROR]),
)
tool_steps = st.builds(
    lambda pairs, unparsed: Step(
        "", tuple(c for c, _ in pairs), tuple(r for _, r in pairs), unparsed=("?",) * unparsed
    ),
    st.lists(calls, max_size=3),
    st.integers(0, 1),
)
trajectories = st.builds(
    lambda steps, answer, truth: run(*steps, answer=answer, truth=truth),
    st.lists(tool_steps, max_size=6),
    fact_texts.filter(bool),
    st.sampled_from(FACTS),
)
ROBUST = st.builds(
    lambda alpha, bound, unsolved_share: StepToolReward(
        verifier=ExactMatch(contains=True), alpha=alpha, bound=bound, unsolved_share=unsolved_share, partial=0.1
    ),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([0.1, 0.5, 0.85]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def insert(trajectory: Trajectory, at: int, call: ToolCall, result: ToolResult, own_step: bool) -> Trajectory:
    """Add a call as a step of its own before step `at`, or as the last of the parallel calls of step `at`."""
    if own_step:
        new = Step("", (call,), (result,))
        return replace(trajectory, steps=(*trajectory.steps[:at], new, *trajectory.steps[at:]))
    old = trajectory.steps[at]
    new = replace(old, calls=(*old.calls, call), results=(*old.results, result))
    return replace(trajectory, steps=(*trajectory.steps[:at], new, *trajectory.steps[at + 1 :]))


def returns(reward: StepToolReward, trajectory: Trajectory, gamma: float) -> float:
    return sum(gamma**t * r for t, r in enumerate(reward(trajectory).step_rewards))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(ROBUST, trajectories, st.data(), st.sampled_from([1.0, 0.9]))
def test_an_unused_call_never_raises_the_return(
    reward: StepToolReward, trajectory: Trajectory, data: st.DataObject, gamma: float
) -> None:
    at = data.draw(st.integers(0, len(trajectory.steps) - 1))
    call, _ = data.draw(calls)  # its arguments may name real facts, so that it seems to use earlier answers
    unused = ToolResult(Outcome.OK, "zebra-999 zebra-998")
    more = insert(trajectory, at, call, unused, data.draw(st.booleans()))
    assert returns(reward, more, gamma) <= returns(reward, trajectory, gamma) + 1e-12


@settings(derandomize=True, deadline=None, max_examples=150)
@given(ROBUST, trajectories, st.data(), st.sampled_from([1.0, 0.9]))
def test_a_repeated_call_never_raises_the_return(
    reward: StepToolReward, trajectory: Trajectory, data: st.DataObject, gamma: float
) -> None:
    made = [(t, call, result) for t, s in enumerate(trajectory.steps) for call, result in zip(s.calls, s.results)]
    if not made:
        return
    t, call, result = data.draw(st.sampled_from(made))
    if data.draw(st.booleans()):  # the same call may answer something else the second time, even something useful
        result = ToolResult(Outcome.OK, " ".join(FACTS))
    own_step = data.draw(st.booleans())
    at = data.draw(st.integers(t + own_step, len(trajectory.steps) - 1))
    assert (
        returns(reward, insert(trajectory, at, call, result, own_step), gamma)
        <= returns(reward, trajectory, gamma) + 1e-12
    )


@settings(derandomize=True, deadline=None, max_examples=150)
@given(ROBUST, trajectories)
def test_intermediate_rewards_are_bounded(reward: StepToolReward, trajectory: Trajectory) -> None:
    *before, _ = reward(trajectory).step_rewards
    assert all(r >= 0 for r in before)
    assert sum(before) <= reward.bound + 1e-12


@settings(derandomize=True, deadline=None, max_examples=150)
@given(ROBUST, st.lists(trajectories, min_size=2, max_size=6))
def test_every_solved_trajectory_beats_every_unsolved_one(reward: StepToolReward, found: list[Trajectory]) -> None:
    scored = [reward(trajectory) for trajectory in found]
    solved = [rewards.score for rewards in scored if rewards.metrics["is_solved"] == 1.0]
    unsolved = [rewards.score for rewards in scored if rewards.metrics["is_solved"] < 1.0]
    assert not solved or not unsolved or min(solved) > max(unsolved)


def test_the_properties_can_fail() -> None:
    """`paper` breaks each of them, so the tests above do tell."""
    paper = StepToolReward(mode="paper")
    useful, unused = step("find", "code 7731"), step("clock", "quarter past noon")
    once = paper(run(useful, answer="7731", truth="7731")).score
    assert paper(run(useful, unused, answer="7731", truth="7731")).score > once
    assert paper(run(useful, useful, answer="7731", truth="7731")).score > once
    assert paper(run(useful, useful, answer="7731", truth="0")).score > paper(run(answer="0", truth="0")).score


ODD_TEXT = st.one_of(st.text(max_size=30), st.sampled_from(["\ud800", "{", "[" * 200, '{"error": 1}', "\x00"]))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(ODD_TEXT, ODD_TEXT, st.dictionaries(st.text(max_size=5), st.none() | st.integers() | ODD_TEXT))),
    ODD_TEXT,
    st.sampled_from(["released", "paper", "robust"]),
)
def test_odd_text_of_a_model_is_a_value(made: list[tuple[str, str, dict[str, Any]]], answer: str, mode: Any) -> None:
    steps = [step(name, content) for name, content, _ in made]
    steps = [replace(s, calls=(replace(s.calls[0], arguments=a),)) for s, (_, _, a) in zip(steps, made)]
    found = StepToolReward(mode=mode)(run(*steps, answer=answer))
    assert all(math.isfinite(r) for r in found.step_rewards)
    assert found == StepToolReward(mode=mode)(run(*steps, answer=answer))


def test_odd_arguments_are_a_value() -> None:
    huge = 10**5000  # more digits than Python turns into text
    odd_calls = (ToolCall("f", ["x"]), ToolCall("g", {"n": huge}), ToolCall("Finish", "y"))  # type: ignore[arg-type]
    odd = Step("", odd_calls, (ToolResult(Outcome.OK, '{"error": "", "response": ' + "9" * 5000 + "}"),))
    for mode in ("released", "paper", "robust"):
        StepToolReward(mode=mode, success=SuccCalling())(run(odd, answer="42"))
