"""One trajectory's tools: outcomes, order, state, budgets, ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, InfrastructureError, ToolDefinitionError, UnknownNameError
from verl_toolrl.toolbox import (
    Budget,
    CallRefused,
    ModelMistake,
    StatefulTool,
    Toolbox,
    ToolContext,
    ToolError,
    tool,
)
from verl_toolrl.trajectory import Outcome, StopReason, ToolCall, ToolResult


def ask(box: Toolbox, *calls: ToolCall, **options: Any) -> list[ToolResult]:
    """Answer the calls of one step in a fresh trajectory, and check that nothing is left behind."""

    async def run() -> list[ToolResult]:
        async with box, box.session("t", **options) as session:
            results = await session.call_all(calls)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    return asyncio.run(run())


@tool
async def add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


@tool(isolation="inline")
def shout(text: str) -> str:
    """Shout."""
    return text.upper()


@tool
def in_a_thread() -> str:
    """Say in which thread."""
    return threading.current_thread().name


def raising(exc: BaseException | type[BaseException], **options: Any) -> Any:
    @tool(name="bad", **options)
    async def bad() -> str:
        """Raise."""
        raise exc

    return bad


class OddText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    ("exc", "outcome"),
    [
        pytest.param(ToolError("no such city"), Outcome.TOOL_ERROR, id="ToolError"),
        pytest.param(ModelMistake("no SQL"), Outcome.MODEL_ERROR, id="ModelMistake"),
        pytest.param(CallRefused("not on the list"), Outcome.REFUSED, id="CallRefused"),
        pytest.param(InfrastructureError("down"), Outcome.INFRA_ERROR, id="InfrastructureError"),
        pytest.param(ConnectionResetError(), Outcome.INFRA_ERROR, id="connection reset"),
        pytest.param(MemoryError(), Outcome.INFRA_ERROR, id="out of memory"),
        pytest.param(OSError(28, "No space left"), Outcome.INFRA_ERROR, id="disk full"),
        pytest.param(FileNotFoundError(2, "No such file"), Outcome.TOOL_ERROR, id="no such file"),
        pytest.param(TimeoutError(), Outcome.TIMEOUT, id="TimeoutError"),
        pytest.param(asyncio.TimeoutError(), Outcome.TIMEOUT, id="asyncio.TimeoutError"),
        pytest.param(KeyError("x"), Outcome.TOOL_ERROR, id="KeyError"),
        pytest.param(OddText(), Outcome.TOOL_ERROR, id="an exception whose text raises"),
        pytest.param(SystemExit(3), Outcome.TOOL_ERROR, id="SystemExit"),
        pytest.param(KeyboardInterrupt(), Outcome.TOOL_ERROR, id="KeyboardInterrupt"),
        pytest.param(GeneratorExit(), Outcome.TOOL_ERROR, id="GeneratorExit"),
        pytest.param(StopIteration(), Outcome.TOOL_ERROR, id="StopIteration"),
        pytest.param(asyncio.CancelledError(), Outcome.TOOL_ERROR, id="CancelledError of its own"),
        pytest.param(RecursionError(), Outcome.TOOL_ERROR, id="RecursionError"),
    ],
)
def test_each_exception_becomes_the_outcome_of_whose_doing_it_is(exc: BaseException, outcome: Outcome):
    result = ask(Toolbox([raising(exc)]), ToolCall("bad"))[0]
    assert result.outcome is outcome
    assert result.error is not None and result.content.startswith("Error: ")


def test_an_author_may_declare_infrastructure_errors():
    box = Toolbox([raising(Custom("x"), infrastructure_errors=(Custom,))])
    assert ask(box, ToolCall("bad"))[0].outcome is Outcome.INFRA_ERROR


def test_infrastructure_failures_do_not_leak_their_text_to_the_model():
    result = ask(Toolbox([raising(InfrastructureError("password in here"))]), ToolCall("bad"))[0]
    assert "password" not in result.content and "password" in str(result.error)


def test_an_answer_keeps_text_value_and_count():
    box = Toolbox([add])
    result = ask(box, ToolCall("add", {"a": "3"}))[0]
    assert (result.outcome, result.content, result.value, result.attempts) == (Outcome.OK, "5", 5, 1)
    assert box.counts == {"add": {"ok": 1}}
    assert box.metrics()["tools/add/ok"] == box.metrics()["tools/all/ok"] == 1.0


def test_an_unknown_tool_is_the_models_mistake_and_the_names_are_told():
    box = Toolbox([add, shout])
    result = ask(box, ToolCall("shuot", {}))[0]
    assert result.outcome is Outcome.MODEL_ERROR and result.attempts == 0
    assert "did you mean 'shout'" in result.content and "add, shout" in result.content
    assert box.counts["unknown"] == {"model_error": 1}


def test_a_thousand_invented_names_do_not_grow_the_counts():
    box = Toolbox([add])
    ask(box, *(ToolCall(f"invented_{i}") for i in range(1000)))
    assert len(box.metrics()) == len(Toolbox([add]).metrics())


def test_a_sync_function_runs_in_a_thread_unless_it_says_inline():
    assert ask(Toolbox([in_a_thread]), ToolCall("in_a_thread"))[0].content == "toolbox"
    inline = in_a_thread.replaced(isolation="inline")
    assert ask(Toolbox([inline]), ToolCall("in_a_thread"))[0].content == "MainThread"


@pytest.mark.parametrize("isolation", ["inline", "thread"])
def test_parallel_calls_overlap_and_are_answered_in_order(isolation: str):
    together, seen = 8, []
    barrier = threading.Barrier(together, timeout=30)

    async def wait_async(i: int) -> int:
        """Wait until all are there."""
        seen.append(i)
        while len(seen) < together:
            await asyncio.sleep(0.001)
        return i

    def wait_sync(i: int) -> int:
        """Wait until all are there."""
        barrier.wait()
        return i

    waiting = tool(name="w")(wait_async if isolation == "inline" else wait_sync)
    results = ask(Toolbox([waiting]), *(ToolCall("w", {"i": i}) for i in range(together)))
    assert [result.value for result in results] == list(range(together))


class Counter(StatefulTool):
    closed: list[int] = []

    def __init__(self, start: int = 0) -> None:
        self.value, self.history = start, [start]

    @tool(isolation="inline")
    def up(self, by: int) -> list[int]:
        """Count up."""
        self.value += by
        self.history.append(self.value)
        return self.history

    @tool
    async def slow_up(self, by: int) -> int:
        """Count up, slowly."""
        before = self.value
        await asyncio.sleep(0.001)
        self.value = before + by
        return self.value

    def snapshot(self) -> dict[str, int]:
        return {"value": self.value}

    def close(self) -> None:
        self.closed.append(self.value)


def test_state_lives_for_a_trajectory_and_is_released():
    Counter.closed.clear()

    async def run() -> None:
        async with Toolbox([Counter]) as box:
            async with (
                box.session("a", state={"Counter": {"start": 10}}) as first,
                box.session("b") as second,
            ):
                await first.call(ToolCall("up", {"by": 1}))
                assert (await first.call(ToolCall("up", {"by": 2}))).value == [10, 11, 13]
                assert (await second.call(ToolCall("up", {"by": 5}))).value == [0, 5]
                assert await first.snapshot() == {"Counter": {"value": 13}}
                assert first.state("Counter").value == 13
            assert sorted(Counter.closed) == [5, 13]

    asyncio.run(run())


def test_calls_on_one_state_run_one_after_the_other_in_order():
    results = ask(Toolbox([Counter]), *(ToolCall("slow_up", {"by": i}) for i in (1, 10, 100)))
    assert [result.value for result in results] == [1, 11, 111]


def test_an_answer_does_not_change_when_the_tool_goes_on():
    first, second = ask(Toolbox([Counter]), ToolCall("up", {"by": 1}), ToolCall("up", {"by": 1}))
    assert (first.value, second.value) == ([0, 1], [0, 1, 2])


def test_a_tool_that_changes_its_arguments_does_not_change_the_record_of_the_call():
    @tool(isolation="inline")
    def sort(items: list[int]) -> list[int]:
        """Sort."""
        items.sort()
        return items

    call = ToolCall("sort", {"items": [3, 1]})
    assert ask(Toolbox([sort]), call)[0].value == [1, 3]
    assert call.arguments == {"items": [3, 1]}


def test_state_is_released_when_the_rollout_raises_or_is_cancelled():
    Counter.closed.clear()

    async def body(box: Toolbox, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with box.session() as session:
            await session.call(ToolCall("up", {"by": 1}))
            await end()

    async def fail() -> None:
        raise ValueError

    async def run() -> None:
        async with Toolbox([Counter]) as box:
            with pytest.raises(ValueError):
                await body(box, fail)
            task = asyncio.create_task(body(box, lambda: asyncio.sleep(60)))
            while not box.sessions:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert Counter.closed == [1, 1] and not box.sessions

    asyncio.run(run())


def test_a_state_that_cannot_be_closed_is_counted_and_hurts_nobody(caplog: pytest.LogCaptureFixture):
    class Sticky(StatefulTool):
        @tool(isolation="inline")
        def touch(self) -> str:
            """Touch."""
            return "ok"

        async def close(self) -> None:
            raise OSError("stuck")

    box = Toolbox([Sticky])
    assert ask(box, ToolCall("touch"))[0].outcome is Outcome.OK
    assert sum(box.faults.values()) == 1


def test_state_keywords_are_checked_when_the_session_opens():
    with pytest.raises(ConfigError, match="no keyword 'strat', did you mean 'start'"):
        ask(Toolbox([Counter]), state={"Counter": {"strat": 1}})
    with pytest.raises(UnknownNameError, match="did you mean 'Counter'"):
        ask(Toolbox([Counter]), state={"Conter": {}})


def test_a_constructor_that_fails_is_not_the_models_doing():
    class Broken(StatefulTool):
        def __init__(self) -> None:
            raise InfrastructureError("no database")

        @tool(isolation="inline")
        def touch(self) -> str:
            """Touch."""
            return "ok"

    assert ask(Toolbox([Broken]), ToolCall("touch"))[0].outcome is Outcome.INFRA_ERROR


class Fragile(StatefulTool):
    """A state whose picture can fail."""

    def __init__(self, error: str | None = None) -> None:
        self.error = error

    @tool(limits={"timeout": 0.05})
    def hang(self) -> str:
        """Never answer in time."""
        never.wait(60)
        return ""

    @tool(limits={"timeout": 0.05}, arguments_cause_timeout=True)
    def run_program(self) -> str:
        """Never answer in time, because of what the model wrote."""
        never.wait(60)
        return ""

    def snapshot(self) -> str:
        if self.error is not None:
            raise {"author": KeyError, "server": ConnectionError}[self.error]("because")
        return "fine"


never = threading.Event()


def picture(*calls: ToolCall, **state: Any) -> dict[str, Any]:
    """Take the picture of a `Fragile` after some calls."""

    async def run() -> dict[str, Any]:
        async with Toolbox([Fragile]) as box, box.session("t", state={"Fragile": state}) as session:
            await session.call_all(calls)
            return await session.snapshot()

    never.clear()
    try:
        return asyncio.run(run())
    finally:
        never.set()


def test_a_state_whose_call_was_stopped_has_no_picture():
    with pytest.raises(InfrastructureError, match="state Fragile of trajectory t: it was lost"):
        picture(ToolCall("hang"))


def test_a_state_lost_to_what_the_model_wrote_is_none():
    assert picture(ToolCall("run_program")) == {"Fragile": None}


def test_a_snapshot_that_raises_is_its_authors_mistake_and_names_class_tool_and_line():
    told = r"state Fragile .*'hang'.*test_toolbox_session.py:\d+ in snapshot: KeyError"
    with pytest.raises(ToolDefinitionError, match=told):
        picture(error="author")


def test_a_snapshot_that_a_server_fails_is_a_failure_of_infrastructure():
    with pytest.raises(InfrastructureError, match="state Fragile of trajectory t: ConnectionError"):
        picture(error="server")


def test_a_state_without_a_snapshot_is_none():
    class Mute(StatefulTool):
        @tool(isolation="inline")
        def touch(self) -> str:
            """Touch."""
            return "ok"

    async def run() -> None:
        async with Toolbox([Mute]) as box, box.session() as session:
            assert await session.snapshot() == {"Mute": None}

    asyncio.run(run())


def test_a_picture_waits_until_a_stopped_call_has_ended():
    class Slow(StatefulTool):
        def __init__(self) -> None:
            self.value = 0

        @tool(limits={"timeout": 0.05})
        async def change(self) -> str:
            """Change in two steps, the second also when stopped."""
            self.value = 1
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                self.value = 2
            return ""

        def snapshot(self) -> int:
            return self.value

    async def run() -> None:
        async with Toolbox([Slow]) as box, box.session() as session:
            assert (await session.call(ToolCall("change"))).outcome is Outcome.TIMEOUT
            assert await session.snapshot() == {"Slow": 2}

    asyncio.run(run())


def test_one_class_twice_under_two_names():
    box = Toolbox(
        [
            *Counter.tools(name="left", start=1),
            *(each.replaced(name=f"{each.name}_right") for each in Counter.tools(name="right", start=5)),
        ]
    )
    results = ask(box, ToolCall("up", {"by": 1}), ToolCall("up_right", {"by": 1}))
    assert [result.value[-1] for result in results] == [2, 6]


def test_a_tool_may_ask_who_calls():
    @tool(isolation="inline")
    def who(context: ToolContext, polite: bool = True) -> str:
        """Say who asks."""
        return f"{context.trajectory_id} {context.extra['uid']} {polite}"

    assert ask(Toolbox([who]), ToolCall("who"), extra={"uid": 7})[0].content == "t 7 True"


@tool(ends_trajectory=True, isolation="inline")
def finish(answer: str) -> str:
    """End."""
    return answer


def test_a_tool_that_ends_the_trajectory_lets_earlier_calls_finish_and_refuses_later_ones():
    async def run() -> None:
        async with Toolbox([add, finish]) as box, box.session() as session:
            calls = [ToolCall("add", {"a": 1}), ToolCall("finish", {"answer": "x"}), ToolCall("add", {"a": 1})]
            results = await session.call_all(calls)
            assert [each.outcome for each in results] == [Outcome.OK, Outcome.OK, Outcome.REFUSED]
            assert session.stop_reason is StopReason.FINISHED and session.ended_by == calls[1]
            assert (await session.call(calls[0])).outcome is Outcome.REFUSED

    asyncio.run(run())


def test_an_ending_call_with_wrong_arguments_does_not_end():
    async def run() -> None:
        async with Toolbox([add, finish]) as box, box.session() as session:
            results = await session.call_all([ToolCall("finish", {"anwser": "x"}), ToolCall("add", {"a": 1})])
            assert [each.outcome for each in results] == [Outcome.MODEL_ERROR, Outcome.OK]
            assert session.stop_reason is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("budget", "steps", "outcomes", "reason"),
    [
        pytest.param(Budget(calls=2), [3], ["ok", "ok", "refused"], StopReason.MAX_CALLS, id="calls"),
        pytest.param(Budget(steps=1), [2, 1], ["ok", "ok", "refused"], StopReason.MAX_STEPS, id="steps"),
        pytest.param(Budget(calls=5, steps=3), [1, 1], ["ok", "ok"], None, id="not used up"),
    ],
)
def test_budgets_of_calls_and_steps(budget: Budget, steps: list[int], outcomes: list[str], reason: StopReason | None):
    async def run() -> None:
        async with Toolbox([add], budget=budget) as box, box.session() as session:
            results = [
                each for n in steps for each in await session.call_all([ToolCall("add", {"a": i}) for i in range(n)])
            ]
            assert [each.outcome.value for each in results] == outcomes
            assert session.stop_reason is reason

    asyncio.run(run())


def test_the_budget_of_tokens_cuts_in_order_and_then_refuses():
    @tool(isolation="inline")
    def text(n: int) -> str:
        """Text."""
        return "x" * n

    async def run() -> None:
        # Without a tokenizer a token is three bytes: 30 bytes are 10 tokens.
        async with Toolbox([text]) as box, box.session(budget=Budget(tokens=15)) as session:
            results = await session.call_all([ToolCall("text", {"n": 30}), ToolCall("text", {"n": 30})])
            assert results[0].content == "x" * 30 and not results[0].truncated
            assert results[1].content.startswith("x" * 15 + "\n[cut") and results[1].truncated
            assert session.tokens == 15 and session.stop_reason is StopReason.MAX_TOKENS
            assert (await session.call(ToolCall("text", {"n": 1}))).outcome is Outcome.REFUSED

    asyncio.run(run())


def test_the_budget_of_seconds_stands_still_while_the_model_writes(monkeypatch: pytest.MonkeyPatch):
    async def run() -> None:
        loop, passed = asyncio.get_running_loop(), [0.0]
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + passed[0])

        @tool(isolation="inline")
        def work(seconds: float) -> str:
            """Take so long."""
            passed[0] += seconds
            return "done"

        async with Toolbox([work], watchdog=None) as box, box.session(budget=Budget(seconds=3000)) as session:
            for _ in range(3):
                passed[0] += 3600  # the model writes for an hour
                assert (await session.call(ToolCall("work", {"seconds": 1000}))).outcome is Outcome.OK
            assert 3000 <= session.seconds < 3600
            assert (await session.call(ToolCall("work", {"seconds": 1}))).outcome is Outcome.REFUSED
            assert session.stop_reason is StopReason.MAX_SECONDS

    asyncio.run(run())


def test_the_budget_of_seconds_stops_a_call_in_the_air_and_refuses_later_ones():
    @tool
    async def forever() -> str:
        """Wait."""
        await asyncio.sleep(3600)
        return ""

    async def run() -> None:
        async with Toolbox([forever]) as box, box.session(budget=Budget(seconds=0.05)) as session:
            assert (await session.call(ToolCall("forever"))).outcome is Outcome.REFUSED
            assert session.stop_reason is StopReason.MAX_SECONDS
            assert (await session.call(ToolCall("forever"))).attempts == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_session_may_have_some_of_the_tools():
    async def run() -> None:
        async with Toolbox([add, shout]) as box, box.session(tools=["shout"]) as session:
            assert [each["function"]["name"] for each in session.schemas] == ["shout"]
            assert (await session.call(ToolCall("add", {"a": 1}))).outcome is Outcome.MODEL_ERROR
        with pytest.raises(UnknownNameError):
            async with box.session(tools=["shot"]):
                pass
        await box.aclose()

    asyncio.run(run())


def test_cancelling_a_step_stops_its_calls():
    stopped = []

    @tool
    async def wait() -> str:
        """Wait."""
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.append(1)
        return ""

    async def run() -> None:
        async with Toolbox([wait]) as box, box.session() as session:
            step = asyncio.create_task(session.call_all([ToolCall("wait"), ToolCall("wait")]))
            await asyncio.sleep(0.01)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
            await asyncio.sleep(0.01)
            assert stopped == [1, 1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        pytest.param({"a": [1, None]}, '{"a":[1,null]}', id="mapping"),
        pytest.param(None, "null", id="None"),
        pytest.param((1, 2), "[1,2]", id="tuple"),
        pytest.param({1, 2}, "[1,2]", id="set"),
        pytest.param(b"caf\xc3\xa9", "café", id="bytes"),
        pytest.param(10**40, str(10**40), id="an integer of 133 bits"),
        pytest.param("lone \ud800", "lone ?", id="lone surrogate"),
        pytest.param("", "", id="empty"),
    ],
)
def test_what_a_tool_returns_becomes_text(returned: Any, content: str):
    @tool(isolation="inline")
    def give() -> Any:
        """Give."""
        return returned

    result = ask(Toolbox([give]), ToolCall("give"))[0]
    assert (result.outcome, result.content) == (Outcome.OK, content)
    result.content.encode()


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    "returned", [object(), _cycle(), {"f": open}, lambda: 1], ids=["object", "cycle", "nested", "λ"]
)
def test_what_has_no_json_form_is_the_tools_error(returned: Any):
    @tool(isolation="inline")
    def give() -> Any:
        """Give."""
        return returned

    assert ask(Toolbox([give]), ToolCall("give"))[0].outcome is Outcome.TOOL_ERROR


def test_an_answer_that_breaks_its_declared_schema_is_the_tools_error():
    @tool(isolation="inline", returns={"type": "object", "required": ["id"]})
    def give(good: bool) -> Any:
        """Give."""
        return {"id": 1} if good else {"ids": 1}

    good, bad = ask(Toolbox([give]), ToolCall("give", {"good": True}), ToolCall("give", {"good": False}))
    assert (good.outcome, bad.outcome) == (Outcome.OK, Outcome.TOOL_ERROR)
    assert "id" in str(bad.error)


def test_two_tools_of_one_name_raise_with_both_places():
    with pytest.raises(ToolDefinitionError, match="two tools are named 'add'"):
        Toolbox([add, add.replaced(description="Another.")])


def test_a_method_cannot_be_given_without_its_class():
    with pytest.raises(ToolDefinitionError, match="is a method"):
        Toolbox([Counter.up])


def test_a_toolbox_can_be_used_on_one_event_loop_after_another():
    box = Toolbox([add, Counter, in_a_thread])
    for _ in range(3):
        assert ask(box, ToolCall("add", {"a": 1}))[0].value == 3

    async def without_closing() -> None:
        async with box.session() as session:
            await session.call(ToolCall("in_a_thread"))

    asyncio.run(without_closing())
    assert ask(box, ToolCall("add", {"a": 1}))[0].value == 3


def test_the_watchdog_names_a_tool_that_blocks_the_loop(caplog: pytest.LogCaptureFixture):
    @tool
    async def block() -> str:
        """Block."""
        time.sleep(0.6)  # noqa: ASYNC251 (the fault under test)
        return "done"

    box = Toolbox([block], watchdog=0.1)
    assert ask(box, ToolCall("block"))[0].content == "done"
    assert box.metrics()["tools/block/blocked_loop"] == 1.0
    assert "'block' blocks the event loop" in caplog.text and "time.sleep" in caplog.text


def test_another_tools_blocking_does_not_time_a_quick_one_out():
    @tool(limits={"timeout": 0.2})
    async def quick() -> str:
        """Answer after a moment."""
        await asyncio.sleep(0.05)
        return "here"

    @tool
    async def block() -> str:
        """Block."""
        time.sleep(0.6)
        return "done"

    results = ask(Toolbox([quick, block], watchdog=None), ToolCall("quick"), ToolCall("block"))
    assert [each.outcome for each in results] == [Outcome.OK, Outcome.OK]
