"""One trajectory: why it ends, what its budgets hold, and what becomes of every kind of failure."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError, InfrastructureError
from verl_toolrl.rollout import (
    ChatTokens,
    Rollout,
    ScriptedEngine,
    SessionLost,
    TurnLimits,
    make_dialogue,
    run_dialogue,
)
from verl_toolrl.rollout.audit import audit
from verl_toolrl.rollout.engine import Generation
from verl_toolrl.toolbox import Budget, Toolbox, ToolError, tool
from verl_toolrl.trajectory import Outcome, StopReason, Trajectory


@tool(isolation="inline")
def double(n: int) -> int:
    """Double a number.

    Args:
        n: The number.
    """
    if n < 0:
        raise ToolError("only positive numbers")
    return 2 * n


@tool(isolation="inline")
def flood() -> str:
    """Say much."""
    return "word " * 2000


@tool
async def away() -> str:
    """Fail as a server does."""
    raise InfrastructureError("connection refused")


@tool(isolation="inline", ends_trajectory=True)
def finish(answer: str) -> str:
    """End the task.

    Args:
        answer: The answer.
    """
    return answer


def call(name: str, **arguments: Any) -> str:
    import json

    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


TWO, TEN, LEFT, FLOOD, AWAY, DONE = (
    call("double", n=1),
    call("double", n=5),
    call("double", n=-1),
    call("flood"),
    call("away"),
    "The answer is 10.",
)
BROKEN = "<tool_call>\nplease double one\n</tool_call>"


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[[str], Any]) -> Any:
    return make_tokenizer("qwen2.5")


async def roll(
    tokenizer: Any,
    script: Sequence[str],
    *,
    engine: Any = None,
    dialogue: Any = None,
    budget: Budget | None = None,
    messages: Sequence[Mapping[str, Any]] = ({"role": "user", "content": "Go."},),
    options: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Rollout:
    chat, dialogue = ChatTokens(tokenizer), dialogue or make_dialogue("native")
    engine = engine or ScriptedEngine(tokenizer, script, stop_id=tokenizer.eos_token_id, **(options or {}))
    async with Toolbox([double, flood, away, finish], watchdog=None) as box, box.session("t", budget=budget) as session:
        rollout = await run_dialogue(
            engine=engine,
            chat=chat,
            dialogue=dialogue,
            session=session,
            messages=messages,
            limits=TurnLimits(**{"response_tokens": 100_000, **limits}),
            sampling={"logprobs": True},
            request_id="t",
        )
        assert [] == list(audit(rollout, chat, dialogue, session.schemas))
    return rollout


def run(*args: Any, **kwargs: Any) -> Rollout:
    return asyncio.run(roll(*args, **kwargs))


ENDS = [
    pytest.param([DONE], {}, StopReason.FINISHED, 1, id="an answer without a call"),
    pytest.param([TWO, TEN, DONE], {}, StopReason.FINISHED, 3, id="calls, then an answer"),
    pytest.param([TWO, call("finish", answer="10")], {}, StopReason.FINISHED, 2, id="a tool that ends it"),
    pytest.param([TWO] * 9, {"steps": 3}, StopReason.MAX_STEPS, 3, id="the last step asks for a tool"),
    pytest.param([TWO, DONE], {"steps": 2}, StopReason.FINISHED, 2, id="the last step answers"),
    pytest.param([TWO] * 9, {"budget": Budget(calls=2)}, StopReason.MAX_CALLS, 3, id="one call too many"),
    pytest.param([TWO, DONE], {"budget": Budget(calls=1)}, StopReason.FINISHED, 2, id="as many calls as allowed"),
    pytest.param([BROKEN, DONE], {}, StopReason.FINISHED, 2, id="a broken call is told"),
    pytest.param([BROKEN, DONE], {"stop_on_malformed": True}, StopReason.MALFORMED, 1, id="a broken call ends it"),
    pytest.param([FLOOD, DONE], {"response_tokens": 1000}, StopReason.MAX_TOKENS, 1, id="no room for the answer"),
    pytest.param([TWO], {"response_tokens": 20}, StopReason.MAX_TOKENS, 1, id="the response is full"),
    pytest.param([TWO], {"turn_tokens": 20}, StopReason.MAX_TOKENS, 1, id="an answer is too long"),
    pytest.param([LEFT, DONE], {}, StopReason.FINISHED, 2, id="a tool's own error is an answer"),
]


@pytest.mark.parametrize(("script", "options", "reason", "steps"), ENDS)
def test_a_trajectory_says_why_it_ended(
    tokenizer: Any, script: list[str], options: dict[str, Any], reason: StopReason, steps: int
) -> None:
    rollout = run(tokenizer, script, **options)
    assert (reason, steps) == (rollout.trajectory.stop_reason, len(rollout.trajectory.steps))


def test_a_response_that_was_cut_holds_what_was_written_and_runs_no_call(tokenizer: Any) -> None:
    whole = len(tokenizer.encode(TWO))
    rollout = run(tokenizer, [TWO], response_tokens=whole)  # the call is there, the token that ends the answer is not
    (step,) = rollout.trajectory.steps
    assert (TWO, 1, ()) == (step.text, len(step.calls), step.results)
    assert StopReason.MAX_TOKENS is rollout.trajectory.stop_reason and [1] * whole == rollout.response_mask


def test_answers_that_have_no_room_are_recorded_and_not_appended(tokenizer: Any) -> None:
    rollout = run(tokenizer, [FLOOD, DONE], response_tokens=1000)
    (step,) = rollout.trajectory.steps
    assert Outcome.OK is step.results[0].outcome and step.span == (0, len(rollout.response_ids))
    assert all(rollout.response_mask) and [] == rollout.appended


def test_an_answer_of_a_tool_is_cut_to_its_own_budget(tokenizer: Any) -> None:
    rollout = run(tokenizer, [FLOOD, DONE], tool_tokens=50)
    (result,) = rollout.trajectory.steps[0].results
    assert result.truncated and "[cut: the first 50 of" in result.content
    assert rollout.appended[0][0]["content"] == result.content


def test_the_model_is_told_why_a_call_could_not_be_read(tokenizer: Any) -> None:
    rollout = run(tokenizer, [BROKEN, DONE])
    assert "could not be read" in rollout.appended[0][0]["content"] and rollout.trajectory.steps[0].unparsed


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_generation_that_was_given_up_is_taken_up_where_it_stopped(tokenizer: Any, cut: int) -> None:
    plain = run(tokenizer, [TWO, DONE])
    resumed = run(tokenizer, [TWO, DONE], options={"abort_after": {0: cut, 1: cut}})
    assert (plain.response_ids, plain.response_mask) == (resumed.response_ids, resumed.response_mask)
    assert plain.logprobs == resumed.logprobs
    assert [step.span for step in plain.trajectory.steps] == [step.span for step in resumed.trajectory.steps]


TAGGED = '<|python_tag|>{"name": "double", "parameters": {"n": 1}}'


def roll_llama(make_tokenizer: Callable[[str], Any], **options: Any) -> Rollout:
    """Play a call behind `<|python_tag|>`, a special token that ends nothing, and an answer."""
    tokenizer = make_tokenizer("llama3")
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    engine = ScriptedEngine(tokenizer, [TAGGED, DONE], stop_id=end, **options.pop("engine", {}))
    return run(tokenizer, [], engine=engine, dialogue=make_dialogue("native", "llama3_json"), **options)


def test_a_generation_given_up_behind_a_special_token_is_taken_up(make_tokenizer: Callable[[str], Any]) -> None:
    plain, resumed = (roll_llama(make_tokenizer, engine={"abort_after": cut}) for cut in ({}, {0: 1}))
    assert ["2"] == [result.content for result in resumed.trajectory.steps[0].results]
    assert (plain.response_ids, plain.response_mask) == (resumed.response_ids, resumed.response_mask)


def test_an_answer_that_is_cut_behind_a_special_token_is_no_whole_answer(make_tokenizer: Callable[[str], Any]) -> None:
    rollout = roll_llama(make_tokenizer, turn_tokens=1)
    assert StopReason.MAX_TOKENS is rollout.trajectory.stop_reason and 1 == len(rollout.response_ids)


def test_an_engine_may_stop_at_an_end_that_only_it_knows(tokenizer: Any) -> None:
    """vLLM takes ends from the model's generation config: `<|endoftext|>` for Qwen, whose templates never write it."""
    end = tokenizer.pad_token_id
    assert end not in ChatTokens(tokenizer).stop_ids
    rollout = run(tokenizer, [], engine=Always(Generation([5, end], [-1.0, -1.0])))
    assert StopReason.FINISHED is rollout.trajectory.stop_reason


class Always:
    """An engine that gives one generation, whatever is asked."""

    def __init__(self, *generations: Any) -> None:
        self.generations = list(generations)

    async def generate(self, prompt_ids: list[int], sampling: Mapping[str, Any], request_id: str) -> Generation:
        made = self.generations.pop(0) if len(self.generations) > 1 else self.generations[0]
        if isinstance(made, Exception):
            raise made
        return made


LOST = [
    pytest.param(Always(InfrastructureError("gone")), StopReason.INFRA_ERROR, "engine: gone", id="a dead engine"),
    pytest.param(Always(Generation([], [])), StopReason.INFRA_ERROR, "no token", id="an empty generation, twice"),
    pytest.param(Always(Generation([], [], True)), StopReason.ABORTED, "gave the request up", id="given up for ever"),
    pytest.param(Always(Generation([5, 6], [-1.0])), StopReason.INFRA_ERROR, "1 log-prob", id="too few logprobs"),
    pytest.param(Always(Generation([5, 6])), StopReason.INFRA_ERROR, "no log-prob", id="no logprobs"),
]


@pytest.mark.parametrize(("engine", "reason", "text"), LOST)
def test_a_failing_engine_loses_the_session(tokenizer: Any, engine: Always, reason: StopReason, text: str) -> None:
    with pytest.raises(SessionLost, match=text) as caught:
        run(tokenizer, [], engine=engine)
    assert reason is caught.value.trajectory.stop_reason
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.trajectory) == (caught.value.reason, caught.value.trajectory)


def test_a_failing_tool_loses_the_session_and_keeps_what_happened(tokenizer: Any) -> None:
    with pytest.raises(SessionLost, match="tool away: infra_error") as caught:
        run(tokenizer, [TWO, AWAY, DONE])
    lost = caught.value.trajectory
    assert lost.lost_to_infrastructure and ["2"] == [result.content for result in lost.steps[0].results]
    assert Trajectory.from_dict(lost.to_dict()) == lost


def test_one_empty_generation_is_asked_for_again(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    rollout = run(tokenizer, [], engine=Always(Generation([], []), Generation([5, end], [-1.0, -1.0])))
    assert [5, end] == rollout.response_ids and StopReason.FINISHED is rollout.trajectory.stop_reason


def test_an_answer_of_the_end_alone_is_an_empty_answer(tokenizer: Any) -> None:
    rollout = run(tokenizer, [], engine=Always(Generation([tokenizer.eos_token_id], [-1.0])))
    assert ("", StopReason.FINISHED) == (rollout.trajectory.steps[0].text, rollout.trajectory.stop_reason)


BAD_LIMITS = [{"response_tokens": 0}, {"response_tokens": None}, {"steps": 0}, {"turn_tokens": 1.5}, {"resumes": -1}]


@pytest.mark.parametrize("limits", BAD_LIMITS)
def test_limits_out_of_range_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        TurnLimits(**limits)


@pytest.mark.parametrize("limits", [{"prompt_tokens": 10}, {"context_tokens": 10}])
def test_a_prompt_that_does_not_fit_is_the_authors_mistake(tokenizer: Any, limits: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match="tokens"):
        run(tokenizer, [DONE], **limits)


PIECES = st.sampled_from([TWO, TEN, LEFT, FLOOD, BROKEN, f"{TWO}\n{TEN}", "Well.", call("nothing"), "é" * 40])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(PIECES, min_size=1, max_size=6),
    response=st.integers(1, 900),
    turn=st.none() | st.integers(1, 200),
    tool_tokens=st.none() | st.integers(1, 100),
    steps=st.none() | st.integers(1, 5),
    aborts=st.dictionaries(st.integers(0, 4), st.integers(0, 30), max_size=3),
)
def test_whatever_is_written_the_budgets_hold_and_the_audit_is_clean(
    tokenizer: Any,
    script: list[str],
    response: int,
    turn: int | None,
    tool_tokens: int | None,
    steps: int | None,
    aborts: dict[int, int],
) -> None:
    rollout = run(
        tokenizer,
        [*script, DONE],
        response_tokens=response,
        turn_tokens=turn,
        tool_tokens=tool_tokens,
        steps=steps,
        options={"abort_after": aborts},
    )
    trajectory = rollout.trajectory
    assert 1 <= len(rollout.response_ids) <= response
    assert all(turn is None or step.span[1] - step.span[0] <= turn for step in trajectory.steps if step.span)
    assert steps is None or len(trajectory.steps) <= steps
    assert 1 == rollout.response_mask[-1], "a response ends with what the model wrote"
    assert len(rollout.appended) == len(trajectory.steps) - 1
    assert Trajectory.from_dict(trajectory.to_dict()) == trajectory
