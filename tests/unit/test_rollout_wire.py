"""Trajectories as JSON text, whatever a model wrote into the arguments of its calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_toolrl.rollout.journal import Journal, read_journal
from verl_toolrl.rollout.wire import dumps, loads
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory


def with_arguments(arguments: dict[str, Any]) -> Trajectory:
    result = ToolResult(Outcome.MODEL_ERROR, "no", value={"seen": 1})
    return Trajectory((Step("text", (ToolCall("f", arguments),), (result,), (0, 3)),), StopReason.MAX_CALLS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_what_is_written_is_read_back(arguments: dict[str, Any]) -> None:
    trajectory = with_arguments(arguments)
    text = dumps(trajectory)
    assert trajectory == Trajectory.from_dict(loads(text)) and "\n" not in text


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = [
    pytest.param({"n": 10**40}, id="a huge integer"),
    pytest.param({"\ud800": "\udfff"}, id="lone surrogates"),
    pytest.param({"deep": nested(60)}, id="nested"),
]


@pytest.mark.parametrize("arguments", HOSTILE)
def test_what_orjson_refuses_is_kept_to_the_last_digit(arguments: dict[str, Any], tmp_path: Path) -> None:
    trajectory = with_arguments(arguments)
    assert trajectory == Trajectory.from_dict(loads(dumps(trajectory)))
    path = Journal(tmp_path).write(1, [{"group": "a", "trajectory": loads(dumps(trajectory))}] * 2)
    assert path is not None
    assert [trajectory] * 2 == [Trajectory.from_dict(record["trajectory"]) for record in read_journal(path)]


def test_what_is_nested_beyond_all_sense_is_cut() -> None:
    assert "..." in dumps(with_arguments({"deep": nested(900)}))


def test_other_objects_become_lists_or_texts() -> None:
    import numpy as np

    value = {"array": np.array(["a", "b"], dtype=object), "path": Path("x"), "numbers": np.arange(2), "big": 10**30}
    wanted = {"array": ["a", "b"], "path": "x", "numbers": [0, 1], "big": 10**30}
    assert wanted == loads(dumps(value))
    assert json.loads(dumps({**value, "big": 1})) == {**wanted, "big": 1}


def test_a_call_with_hostile_arguments_goes_through_the_loop(make_tokenizer: Callable[[str], Any]) -> None:
    import asyncio

    from verl_toolrl.rollout import ChatTokens, Rollout, ScriptedEngine, TurnLimits, make_dialogue, run_dialogue
    from verl_toolrl.toolbox import Toolbox, tool

    @tool(isolation="inline")
    def look_up(key: str) -> str:
        """Look up.

        Args:
            key: What.
        """
        return key

    tokenizer = make_tokenizer("qwen2.5")
    call = '{"name": "\\ud800<|im_end|>", "arguments": {"key": "\\udfff", "n": 1000000000000000000000000}}'
    name = f"<tool_call>\n{call}\n</tool_call>"
    engine = ScriptedEngine(tokenizer, [name, name.replace("\\ud800<|im_end|>", "look_up"), "Done."], stop_id=0)

    async def run(form: str) -> Rollout:
        async with Toolbox([look_up]) as box, box.session() as session:
            return await run_dialogue(
                engine=engine,
                chat=ChatTokens(tokenizer, stop_ids=[0]),
                dialogue=make_dialogue(form, "hermes"),
                session=session,
                messages=[{"role": "user", "content": "Go."}],
                limits=TurnLimits(response_tokens=9999),
                request_id=form,
            )

    for form in ("native", "toolrl", "react"):
        trajectory = asyncio.run(run(form)).trajectory
        assert [Outcome.MODEL_ERROR] * 2 == [step.results[0].outcome for step in trajectory.steps[:2]]
        assert trajectory == Trajectory.from_dict(loads(dumps(trajectory)))
