"""The parts of a step reward: did a call succeed, was its answer used, is the task solved."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, DatasetError, ToolDefinitionError, UnknownNameError
from verl_toolrl.rewards.call_schema import SchemaCheck
from verl_toolrl.rewards.contribution import attempts, call_key, final_answer, tokens, used_calls
from verl_toolrl.rewards.is_solved import ExactMatch, JudgedStatus, NumericMatch, StateMatch, make_verifier
from verl_toolrl.rewards.succ_calling import ContentRules, SuccCalling
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory


def step(name: str, answer: str, outcome: Outcome = Outcome.OK, text: str = "", **arguments: Any) -> Step:
    return Step(text, (ToolCall(name, arguments),), (ToolResult(outcome, answer),))


def run(question: str, *steps: Step, answer: str) -> Trajectory:
    return Trajectory((*steps, Step(answer)), messages=({"role": "user", "content": question},))


def used(trajectory: Trajectory) -> list[bool]:
    tried = [attempts(s) for s in trajectory.steps]
    success = [[SuccCalling()(*attempt) for attempt in made] for made in tried]
    return [use.used for use in used_calls(trajectory, tried, success, final_answer(trajectory))]


# --- SuccCalling


@pytest.mark.parametrize(
    ("content", "outcome", "success"),
    [
        ("sunny", Outcome.OK, True),
        ("[]", Outcome.OK, True),
        ("0", Outcome.OK, True),
        ('{"errors_found": 3, "status": 200}', Outcome.OK, True),
        ("The wrong answer is an error.", Outcome.OK, True),
        ('{"error": "", "response": {"a": 1}}', Outcome.OK, True),
        ('{"status": true}', Outcome.OK, True),
        ("", Outcome.OK, False),
        ("  \n", Outcome.OK, False),
        ("null", Outcome.OK, False),
        ('{"error": "no such city"}', Outcome.OK, False),
        ('{"error": "", "response": ""}', Outcome.OK, False),
        ('{"error": "", "response": "Error: 500 Internal Server Error"}', Outcome.OK, False),
        ('{"error": "", "response": {"status": 404}}', Outcome.OK, False),
        ('{"status_code": 500}', Outcome.OK, False),
        ("Error: not found", Outcome.OK, False),
        ('{"error": "None", "result": 3}', Outcome.OK, True),
        ('{"success": false, "result": null}', Outcome.OK, False),
        ('{"ok": true}', Outcome.OK, True),
        ("Traceback (most recent call last):\n ...", Outcome.OK, False),
        ("sunny", Outcome.TOOL_ERROR, False),
        ("sunny", Outcome.MODEL_ERROR, False),
        ("sunny", Outcome.REFUSED, False),
        ('{"response": ' * 3000, Outcome.OK, True),  # unreadable JSON is text, and text is an answer
    ],
)
def test_a_call_succeeds_by_outcome_and_content(content: str, outcome: Outcome, success: bool) -> None:
    assert success == SuccCalling()(ToolCall("f"), ToolResult(outcome, content))


def test_a_call_without_a_result_did_not_succeed() -> None:
    assert not SuccCalling()(ToolCall("f"), None)


def test_without_content_rules_the_outcome_decides() -> None:
    assert SuccCalling(rules=None)(ToolCall("f"), ToolResult(Outcome.OK, "Error: x"))
    assert SuccCalling(rules=ContentRules(empty=False))(ToolCall("f"), ToolResult(Outcome.OK, ""))


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    ("call", "success"),
    [
        (ToolCall("weather", {"city": "Paris"}), True),
        (ToolCall("weather", {"city": "Paris", "days": 3}), True),
        (ToolCall("weather", {}), False),
        (ToolCall("weather", {"city": "Paris", "days": "3"}), False),
        (ToolCall("weather", {"city": "Paris", "town": 1}), False),
        (ToolCall("wether", {"city": "Paris"}), False),
        (ToolCall("weather", {"city": object()}), False),
    ],
    ids=["fits", "optional", "missing", "type", "surplus", "unknown tool", "no JSON"],
)
def test_a_call_that_breaks_its_schema_did_not_succeed(call: ToolCall, success: bool) -> None:
    rule = pickle.loads(pickle.dumps(SuccCalling(check=SchemaCheck([TOOL]))))
    assert success == rule(call, ToolResult(Outcome.OK, "sunny"))


@pytest.mark.parametrize(
    "tools",
    [[{}], [TOOL, TOOL], [{"name": "f", "parameters": {"type": 5}}], [7]],
    ids=["no name", "twice", "no schema", "no object"],
)
def test_wrong_tools_are_an_author_mistake(tools: list[Any]) -> None:
    with pytest.raises(ToolDefinitionError):
        SchemaCheck(tools)


# --- Contribution


@pytest.mark.parametrize(
    ("trajectory", "expect"),
    [
        (run("Weather in Paris?", step("w", "sunny, 23.5 degrees", city="Paris"), answer="It is 23.50 degrees."), [1]),
        (run("2+3?", step("calc", "5", e="2+3"), answer="The result is 5."), [1]),
        (run("Weather in Paris?", step("w", "sunny"), answer="Sunny!"), [1]),
        (run("Population?", step("w", "2,103,000 people"), answer="About 2103000."), [1]),
        (run("Who wrote it?", step("s", "The novel was written by Leo Tolstoy"), answer="Leo Tolstoy wrote it"), [1]),
        # Not used, or nothing new.
        (run("Weather in Paris?", step("w", "sunny, 23.5 degrees"), answer="I do not know."), [0]),
        (run("Is 4711 prime?", step("echo", "4711"), answer="4711 is not prime"), [0]),
        (run("Weather?", step("w", "which will be with them"), answer="It will be with them, which is it."), [0]),
        (run("Weather?", step("w", "x" * 50 + " 10 a b c 99 881 7712"), answer="10 days"), [0]),
        (run("Q?", step("w", "error 5531", Outcome.TOOL_ERROR), answer="5531"), [0]),
        # Used by a later call that is itself used.
        (
            run(
                "Mail Ann?", step("find", "id u-8812", who="Ann"), step("mail", "sent 77x1", to="u-8812"), answer="77x1"
            ),
            [1, 1],
        ),
        # Feeding a call that nobody uses is no use.
        (run("Q?", step("find", "id u-8812"), step("mail", "sent 77x1", to="u-8812"), answer="done"), [0, 0]),
        # A repetition brings nothing, also with names in another order.
        (run("Q?", step("w", "9917", a=1, b=2), step("w", "9917", b=2, a=1), answer="9917"), [1, 0]),
        # The same fact from a second tool is not new.
        (run("Q?", step("w", "9917"), step("v", "9917"), answer="9917"), [1, 0]),
        # What the model already wrote is not new.
        (run("Q?", step("w", "9917", text="I bet it is 9917"), answer="9917"), [0]),
    ],
)
def test_a_call_contributes_if_what_it_brought_is_used(trajectory: Trajectory, expect: list[int]) -> None:
    assert [bool(x) for x in expect] == used(trajectory)


def test_parallel_calls_cannot_feed_each_other() -> None:
    both = Step(
        "",
        (ToolCall("find"), ToolCall("mail", {"to": "u-8812"})),
        (ToolResult(Outcome.OK, "id u-8812"), ToolResult(Outcome.OK, "sent 77x1")),
    )
    # The address stands in the mail's arguments, written before the answer of `find` could be read.
    assert [False, True] == used(run("Q?", both, answer="77x1"))


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("12.50 and 1,200 and 3", {"12.5", "and", "1200", "3"}),
        ("ID-77 at 2024-05-01", {"id-77", "at", "2024-05-01"}),
        ("20.0", {"20"}),
        ("1.2.3", {"1.2.3"}),
    ],
)
def test_numbers_have_one_spelling(text: str, expect: set[str]) -> None:
    assert expect == tokens(text)


def test_calls_are_the_same_whatever_the_order_of_names() -> None:
    assert call_key(ToolCall("f", {"a": 1, "b": [2]})) == call_key(ToolCall("f", {"b": [2], "a": 1}))
    assert call_key(ToolCall("f", {"a": 1})) != call_key(ToolCall("f", {"a": "1"}))
    assert call_key(ToolCall("f", {1: 2, "a": 3})) != call_key(ToolCall("f", {}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("last", "expect"),
    [
        (Step("<think>42?</think> It is 7."), "It is 7."),
        (Step("<think>never ends 42"), ""),
        (Step("<think>a</think><answer> 7 </answer> bye"), "7"),
        (Step("<response>7"), "7"),
        (Step("x", (ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"}),)), "7"),
        (Step("x", (ToolCall("finish", {"final_answer": 7}),)), "7"),
        (Step("x", (ToolCall("finish", {"return_type": "give_up_and_restart"}),)), ""),
        (Step("I will look: 7", (ToolCall("search"),)), ""),
    ],
    ids=["think", "open think", "answer", "open response", "finish", "number", "give up", "still calling"],
)
def test_the_final_answer_is_what_the_user_reads(last: Step, expect: str) -> None:
    assert expect == final_answer(Trajectory((last,)))


# --- IsSolved


def with_extra(stop: StopReason = StopReason.FINISHED, **extra: Any) -> Trajectory:
    return Trajectory((Step("x"),), stop, id="t1", extra=extra)


@pytest.mark.parametrize(
    ("verifier", "truth", "answer", "score"),
    [
        (ExactMatch(), "Paris", "the paris.", 1),
        (ExactMatch(), ["Paris", "City of Light"], "City of light", 1),
        (ExactMatch(), "Paris", "It is Paris", 0),
        (ExactMatch(contains=True), "Paris", "It is Paris", 1),
        (ExactMatch(contains=True), "Paris", "Parisian", 0),
        (ExactMatch(), "Paris", "", 0),
        (ExactMatch(), "...", "", 0),
        (ExactMatch(), 7, "7", 1),
        (NumericMatch(), 1234.5, "So it is $1,234.50", 1),
        (NumericMatch(), "#### 18", "9 * 2 = 18.", 1),
        (NumericMatch(), 18, "18 or rather 19", 0),
        (NumericMatch(), [1, 2], "2", 1),
        (NumericMatch(relative=0.01), 100, "100.9", 1),
        (NumericMatch(), 5, "no number", 0),
        (NumericMatch(), -3, "x = -3", 1),
        (NumericMatch(), 1e3, "1e3", 1),
        (NumericMatch(), 5, "9" * 400, 0),
    ],
)
def test_an_answer_is_compared(verifier: Any, truth: Any, answer: str, score: int) -> None:
    assert float(score) == verifier(with_extra(ground_truth=truth), answer)


@pytest.mark.parametrize(
    ("final", "wanted", "same"),
    [
        ({"a": [1, {"b": 2.0}]}, {"a": (1, {"b": 2})}, True),
        ({"a": 1, "t": 5}, {"a": 1, "t": 6}, True),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": 1, "b": 1}, {"a": 1}, False),
        ({"a": None}, {"a": None}, True),
    ],
)
def test_states_are_compared_by_type_and_value(final: Any, wanted: Any, same: bool) -> None:
    verifier = StateMatch(ignore=("t",))
    assert float(same) == verifier(with_extra(final_state=final, ground_truth_state=wanted), "")


def test_judged_status_is_the_mean() -> None:
    rounds = [{"status": "Solved"}, {"status": "Unsure"}, {"status": "Unsolved"}]
    assert JudgedStatus()(with_extra(judgements=rounds), "") == 0.5


@pytest.mark.parametrize(
    ("verifier", "extra", "match"),
    [
        (ExactMatch(), {}, "'t1': extra has no 'ground_truth'"),
        (ExactMatch(), {"ground_truth": {"a": 1}}, "wanted an answer or a list"),
        (ExactMatch(), {"ground_truth": "<tool_call>\n{}\n</tool_call>"}, "holds tool calls, .* rows of a single turn"),
        (NumericMatch(), {"ground_truth": "none"}, "holds no number"),
        (StateMatch(), {"final_state": {}}, "no 'ground_truth_state'"),
        (JudgedStatus(), {"judgements": [{"status": "Great"}]}, "'t1': judgements: KeyError: 'Great'"),
        (JudgedStatus(), {"judgements": []}, "empty"),
    ],
)
def test_a_missing_or_wrong_reference_is_the_data_s_fault(verifier: Any, extra: dict[str, Any], match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        verifier(with_extra(**extra), "x")


def test_verifiers_are_made_by_name() -> None:
    assert ExactMatch(contains=True) == make_verifier({"name": "exact", "contains": True})
    assert StateMatch() == make_verifier("state")
    with pytest.raises(UnknownNameError, match="did you mean 'numeric'"):
        make_verifier("numerics")
    with pytest.raises(ConfigError, match="exact.*colour"):
        make_verifier({"name": "exact", "colour": 1})
