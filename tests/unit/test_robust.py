"""`toolrl` in mode `robust`: worked cases, and the seven properties that make it safe to train with."""

from __future__ import annotations

import json
import math
import pickle
from itertools import permutations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats import write_response
from verl_toolrl.matching import best_pairing, freeze_call
from verl_toolrl.rewards import Reward, make_reward, unscheduled
from verl_toolrl.rewards.robust import _pair, pair_total
from verl_toolrl.trajectory import ToolCall

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)

VALUES = st.one_of(
    st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from(["a", "b", "1", "</tool_call>"]), st.just(0.5)
)
ARGUMENTS = st.dictionaries(st.sampled_from("xyz"), st.one_of(VALUES, st.lists(VALUES, max_size=2)), max_size=3)
CALLS = st.builds(ToolCall, st.sampled_from("fgh"), ARGUMENTS)
SOME = st.lists(CALLS, min_size=1, max_size=5)


def text(calls: list[ToolCall]) -> str:
    return write_response(calls, thought="t", response=None if calls else "r")


def score(calls: list[ToolCall], truth: list[ToolCall], **options: Any) -> float:
    return correctness(text(calls), truth, **options)


def correctness(response: str, truth: list[ToolCall], **options: Any) -> float:
    return run(response, truth, **options).components["correctness"]


def run(response: str, truth: list[ToolCall], tools: Any = None, **options: Any) -> Reward:
    reward = make_reward("toolrl", mode="robust", **options)
    return reward(response=response, ground_truth=text(truth), tools=tools)


def multiset(calls: list[ToolCall]) -> list[str]:
    return sorted(map(repr, map(frozen, calls)))


def frozen(call: ToolCall) -> Any:
    return call.name, sorted(
        (key, repr(freeze_call(ToolCall("", {"": value})).items)) for key, value in call.arguments.items()
    )


def is_surplus(call: ToolCall, calls: list[ToolCall], truth: list[ToolCall]) -> bool:
    return sum(c.name == call.name for c in calls) >= sum(g.name == call.name for g in truth)


@PROPERTY
@given(SOME, SOME)
def test_property_1_high_exactly_when_the_calls_are_those_of_the_ground_truth(
    calls: list[ToolCall], truth: list[ToolCall]
) -> None:
    assert (multiset(calls) == multiset(truth)) == (score(calls, truth) == 3.0)


@PROPERTY
@given(SOME, st.randoms(use_true_random=False))
def test_property_1_every_order_of_the_ground_truth_earns_high(truth: list[ToolCall], random: Any) -> None:
    calls = list(truth)
    random.shuffle(calls)
    result = run(text(calls), truth)
    assert (4.0, 3.0, 1.0) == (result.score, result.components["correctness"], result.components["format"])


@PROPERTY
@given(st.lists(CALLS, max_size=5), SOME, CALLS)
def test_property_2_a_surplus_call_lowers_the_score_or_leaves_it_at_low(
    calls: list[ToolCall], truth: list[ToolCall], extra: ToolCall
) -> None:
    assume(is_surplus(extra, calls, truth))
    before, after = score(calls, truth), score([*calls, extra], truth)
    assert after < before or before == after == -3.0


@PROPERTY
@given(st.lists(CALLS, max_size=4), SOME)
def test_property_3_order_does_not_matter_without_surplus(calls: list[ToolCall], truth: list[ToolCall]) -> None:
    assume(all(sum(c.name == n.name for c in calls) <= sum(g.name == n.name for g in truth) for n in calls))
    expected = score(calls, truth)
    for order in list(permutations(calls))[:8]:
        assert math.isclose(expected, score(list(order), truth), abs_tol=1e-12)


@PROPERTY
@given(ARGUMENTS.filter(bool), ARGUMENTS, st.lists(CALLS, max_size=3), st.lists(CALLS, max_size=3), st.data())
def test_property_4_making_an_argument_of_a_paired_call_right_never_lowers_the_total(
    wanted: dict[str, Any], given_: dict[str, Any], others: list[ToolCall], rest: list[ToolCall], data: Any
) -> None:
    """The tool `only` occurs once on each side, so that it is clear which calls are paired."""
    key = data.draw(st.sampled_from(sorted(wanted)))
    truth = [ToolCall("only", wanted), *others]
    before = run(text([ToolCall("only", given_), *rest]), truth)
    after = run(text([ToolCall("only", {**given_, key: wanted[key]}), *rest]), truth)
    assert after.score >= before.score


@PROPERTY
@given(SOME, st.data())
def test_property_5_a_missing_call_raises_the_score(truth: list[ToolCall], data: Any) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(truth))), unique=True, max_size=len(truth) - 1))
    missing = data.draw(st.sampled_from([index for index in range(len(truth)) if index not in kept]))
    calls = [truth[index] for index in kept]
    assert score([*calls, truth[missing]], truth) > score(calls, truth)


@PROPERTY
@given(SOME, ARGUMENTS, st.data())
def test_property_6_one_call_of_a_right_tool_beats_silence(
    truth: list[ToolCall], arguments: dict[str, Any], data: Any
) -> None:
    call = ToolCall(data.draw(st.sampled_from(truth)).name, arguments)
    assert run(text([call]), truth).score > run("<think> t </think>\n<response> r </response>", truth).score


@PROPERTY
@given(SOME, st.data())
def test_property_7_a_truncated_response_never_reaches_the_maximum(truth: list[ToolCall], data: Any) -> None:
    whole = text(truth)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert run(cut, truth).score < 4.0


@pytest.mark.parametrize(
    "damaged",
    [
        '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1},}\n</tool_call>',
        "<think> t </think>\n<tool_call>\n{'name': 'f', 'parameters': {'x': 1}}\n</tool_call>",
        '<think> t </think>\n<tool_call>\n```json\n{"name": "f", "parameters": {"x": 1}}\n```\n</tool_call>',
        '<think> t </think>\n<tool_call>\n[{"name": "f", "parameters": {"x": 1}}]\n</tool_call>',
        '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}\n</tool_call>',
        '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": "{\\"x\\": 1}"}\n</tool_call>',
    ],
    ids=["trailing comma", "single quotes", "fence", "array", "missing brace", "arguments as text"],
)
def test_property_7_a_repaired_response_keeps_its_calls_but_not_the_maximum(damaged: str) -> None:
    result = run(damaged, [ToolCall("f", {"x": 1})])
    assert (3.0, 0.0, 1.0) == (
        result.components["correctness"],
        result.components["format"],
        result.metrics["repaired"],
    )


F1 = ToolCall("f", {"x": 1})
WORKED = [
    # (id, calls, ground truth, correctness); S of F1 with itself is 1 + 1 + 1 = 3
    ("the ground truth", [F1], [F1], 3.0),
    ("silence", [], [F1], -3.0),
    ("wrong value: 2 of 3", [ToolCall("f", {"x": 2})], [F1], 1.0),
    ("wrong key: 1 of 3", [ToolCall("f", {"y": 1})], [F1], -1.0),
    ("a duplicate is surplus: (3 - 1) / 3", [F1, F1], [F1], 1.0),
    ("a foreign tool is surplus", [F1, ToolCall("g", {})], [F1], 1.0),
    ("the first calls of a tool count", [ToolCall("f", {"x": 2}), F1], [F1], -1.0),
    ("twenty junk calls", [F1] + [ToolCall("g", {})] * 20, [F1], -3.0),
    ("no arguments: 2 of 2", [ToolCall("p", {})], [ToolCall("p", {})], 3.0),
    ("true is not 1", [ToolCall("f", {"x": True})], [F1], 1.0),
    ("text is no number", [ToolCall("f", {"x": "1"})], [F1], 1.0),
    ("1.0 is 1", [ToolCall("f", {"x": 1.0})], [F1], 3.0),
    ("large integers are exact", [ToolCall("f", {"x": 10**30 + 1})], [ToolCall("f", {"x": 10**30})], 1.0),
    # G = A(1,1), A(1,2); P = A(1,2), A(1,7). Best: P0 with G1 earns 4, P1 with G0 earns 1 + 1 + 1, together 7 of 8.
    (
        "optimal, not greedy",
        [ToolCall("A", {"x": 1, "y": 2}), ToolCall("A", {"x": 1, "y": 7})],
        [ToolCall("A", {"x": 1, "y": 1}), ToolCall("A", {"x": 1, "y": 2})],
        2.25,
    ),
    ("no call wanted, none made", [], [], 3.0),
    ("no call wanted, one made", [F1], [], -3.0),
]


@pytest.mark.parametrize(("calls", "truth", "expected"), [row[1:] for row in WORKED], ids=[row[0] for row in WORKED])
def test_worked_cases(calls: list[ToolCall], truth: list[ToolCall], expected: float) -> None:
    assert math.isclose(expected, score(calls, truth), abs_tol=1e-12)


SMUGGLED = [
    "<think> t </think>\n<response> x <tool_call> y </tool_call> </response>",
    "<think> t </think>\n<response> x </response>\n<tool_call>\nnot json\n</tool_call>",
    '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {}}',
    '<think> t </think>\n<response> {"name": "f", "arguments": {}} </response>',
    "<think> t </think>\n<response> <function=f></function> </response>",
    "<think> t </think>\n<response> ok </response>\nAction: f\nAction Input: {}",
    "<think> t </think>\n<response> [TOOL_CALLS] [{}] </response>",
]


@pytest.mark.parametrize("response", SMUGGLED)
def test_a_smuggled_or_unreadable_call_counts_where_none_is_wanted(response: str) -> None:
    assert -3.0 == correctness(response, [])


def test_calls_quoted_inside_a_thought_are_no_calls() -> None:
    response = (
        f"<think> maybe {text([ToolCall('g', {})])[17:]} or not </think>\n" + text([F1])[len("<think> t </think>\n") :]
    )
    assert 4.0 == run(response, [F1]).score


def test_a_call_of_another_dialect_is_surplus() -> None:
    hermes = write_response([F1], "hermes", thought="t")
    assert (-3.0, 1.0) == (correctness(hermes, [F1]), run(hermes, [F1]).metrics["foreign"])
    assert 4.0 == run(hermes, [F1], dialect="hermes").score


TOOLS = [
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "page": {"type": "integer", "default": 1}},
        },
    }
]


@pytest.mark.parametrize(
    ("arguments", "typed", "schema"),
    [
        ({"x": "1"}, 1.0, 3.0),
        # typed: keys 1/2, value 1 -> 2.5 of 3
        ({"x": 1, "page": 1}, 2.0, 3.0),
        ({"x": 1, "page": "1"}, 2.0, 3.0),
        ({"x": 1, "page": 2}, 2.0, 2.0),
        ({"x": "one"}, 1.0, 1.0),
    ],
)
def test_a_schema_normalises_values_only_where_asked(arguments: dict[str, Any], typed: float, schema: float) -> None:
    response = text([ToolCall("f", arguments)])
    assert math.isclose(typed, run(response, [F1], TOOLS).components["correctness"])
    assert math.isclose(schema, run(response, [F1], json.dumps(TOOLS), compare="schema").components["correctness"])


def test_schemas_report_wrong_types_and_unknown_names_without_cost() -> None:
    truth = [ToolCall("f", {"x": "text", "new": 1}), ToolCall("g", {})]
    result = run(text(truth), truth, TOOLS)
    assert (4.0, 1.0, 2.0) == (result.score, result.metrics["wrong_types"], result.metrics["unknown_names"])


@PROPERTY
@given(SOME, SOME)
def test_pairing_equal_calls_first_is_optimal(given_calls: list[ToolCall], truth: list[ToolCall]) -> None:
    """The shortcut of `pair_total` against the whole matrix."""
    wanted = [freeze_call(ToolCall("f", call.arguments)) for call in truth]
    given_ = [freeze_call(ToolCall("f", call.arguments)) for call in given_calls]
    weights = [[_pair(want, have) for have in given_] for want in wanted]
    best = math.fsum(weights[row][column] for row, column in best_pairing(weights))
    assert math.isclose(best, pair_total(wanted, given_), abs_tol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dialect": "herms"}, "did you mean 'hermes'"),
        ({"cost": 0.5}, "cost must be at least 1"),
        ({"low": 3.0}, "low .* must lie below high"),
        ({"high": float("nan")}, "high must be a finite number"),
        ({"compare": "type"}, "did you mean 'typed'"),
        ({"weights": {"fromat": 1}}, "did you mean 'format'"),
        ({"weights": {"format": "linear(1)"}}, "weights.format: 'linear\\(1\\)'"),
        ({"equal_max": True}, "'equal_max' belongs to mode released"),
        ({"length_target": 0}, "length_target must be above 0"),
        ({"length_target": 4}, "length_target 4 has no effect with weights.length 0; it needs weights: {length"),
        ({"length_target": "linear(3 -> 6)", "weights": {"length": "0.0"}}, "length_target .* has no effect"),
        ({"in_thought": "yes"}, "in_thought must be true or false"),
        ({"chat_family": "lama"}, "did you mean 'llama'"),
    ],
)
def test_a_wrong_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("toolrl", mode="robust", **options)


def test_a_length_target_is_taken_where_the_weight_is_not_always_0() -> None:
    make_reward("toolrl", length_target="512.0")  # the default, written otherwise
    reward = make_reward("toolrl", weights={"length": "linear(1 -> 0)"}, length_target=4)
    # One word of four, and nothing at the end.
    given_: dict[str, Any] = {"response": text([F1]), "ground_truth": text([F1]), "step": 0, "total_steps": 10}
    assert (0.25, 0.0) == tuple(each(**given_).components["length"] for each in (reward, unscheduled(reward)))


def test_weights_follow_their_schedules_and_the_score_is_the_sum() -> None:
    reward = make_reward("toolrl", mode="robust", weights={"format": "linear(1 -> 0)", "length": 0.5}, length_target=4)
    result = reward(response=text([F1]), ground_truth=text([F1]), step=25, total_steps=100)
    # one word of thought: 0.5 * 1/4
    assert {"format": 0.75, "correctness": 3.0, "length": 0.125} == result.components
    assert 3.875 == result.score
    with pytest.raises(ConfigError, match="needs its length"):
        reward(response="", ground_truth=text([F1]), step=1)
    with pytest.raises(ConfigError, match="step 101 lies outside the run of 100 steps"):
        reward(response="", ground_truth=text([F1]), step=101, total_steps=100)


def test_a_configured_reward_survives_pickle_and_keeps_its_keys() -> None:
    reward = pickle.loads(pickle.dumps(make_reward("toolrl", weights={"length": "cosine(0 -> 1, 0 -> 9)"})))
    first, second = (reward(response=r, ground_truth=text([F1]), tools=TOOLS) for r in ("", text([F1])))
    assert list(first.components) == list(second.components) and list(first.metrics) == list(second.metrics)


def test_an_unreadable_ground_truth_raises_even_where_nothing_else_is_wrong() -> None:
    with pytest.raises(DatasetError, match="</tool_call> is missing"):
        make_reward("toolrl")(response="", ground_truth='<tool_call>\n{"name": "f", "parameters": {}}')
