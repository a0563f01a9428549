"""Limits: time, places, pace, retries, breaker, output; recording and replaying."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.toolbox import Budget, Limits, Recording, StatefulTool, Toolbox, tool
from verl_toolrl.toolbox.limits import Breaker, Deadlines, Pace
from verl_toolrl.toolbox.output import Cutter
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult


def ask(box: Toolbox, *calls: ToolCall, **options: Any) -> list[ToolResult]:
    async def run() -> list[ToolResult]:
        async with box, box.session("t", **options) as session:
            return await session.call_all(calls)

    return asyncio.run(run())


@tool(limits={"timeout": 0.05})
async def hang() -> str:
    """Hang."""
    await asyncio.sleep(3600)
    return ""


def test_a_tool_that_hangs_times_out():
    box = Toolbox([hang])
    result = ask(box, ToolCall("hang"))[0]
    assert (result.outcome, result.content) == (Outcome.TIMEOUT, "Error: hang did not answer in time.")


def test_a_timeout_that_the_arguments_cause_is_the_models():
    assert (
        ask(Toolbox([hang.replaced(arguments_cause_timeout=True)]), ToolCall("hang"))[0].outcome is Outcome.MODEL_ERROR
    )


def test_timeouts_of_one_length_ring_in_order_and_those_stopped_do_not():
    async def run() -> tuple[list[str], int]:
        deadlines, rung = Deadlines(asyncio.get_running_loop(), 0.03), []

        def thens() -> list[Any]:
            return [lambda _, name=name: rung.append(name) for name in "abc"]

        first, second = thens(), thens()
        for each in first:
            deadlines.start(each)
        deadlines.stop(first[0])
        await asyncio.sleep(0.015)
        for each in second:
            deadlines.start(each)
        deadlines.stop(second[2])
        await asyncio.sleep(0.025)
        assert rung == ["b", "c"]
        await asyncio.sleep(0.03)
        deadlines.start(lambda _: rung.append("again"))
        await asyncio.sleep(0.05)
        return rung, len(deadlines._running)

    assert asyncio.run(run()) == (["b", "c", "a", "b", "again"], 0)


def test_a_timeout_that_ends_another_call_keeps_it_from_ringing():
    async def run() -> list[str]:
        deadlines, rung = Deadlines(asyncio.get_running_loop(), 0.01), []

        def second(_: float) -> None:
            rung.append("second")

        def first(_: float) -> None:
            rung.append("first")
            deadlines.stop(second)

        deadlines.start(first)
        deadlines.start(second)
        await asyncio.sleep(0.05)
        return rung

    assert asyncio.run(run()) == ["first"]


def test_a_thread_that_hangs_is_given_up_and_replaced():
    release = threading.Event()

    @tool(limits={"timeout": 0.05})
    def stuck() -> str:
        """Hang."""
        release.wait(60)
        return ""

    @tool
    def quick() -> str:
        """Answer."""
        return "here"

    async def run() -> None:
        async with Toolbox([stuck, quick], threads=1) as box, box.session() as session:
            assert (await session.call(ToolCall("stuck"))).outcome is Outcome.TIMEOUT
            assert (await session.call(ToolCall("quick"))).content == "here"
            assert box.metrics()["tools/all/hanging_threads"] == 1.0
            release.set()
            while box.metrics()["tools/all/hanging_threads"]:
                await asyncio.sleep(0.005)

    asyncio.run(run())
    assert not [each for each in threading.enumerate() if each.name.startswith("toolbox")]


def test_a_tool_that_ignores_its_cancellation_is_left_behind():
    @tool(limits={"timeout": 0.05})
    async def stubborn() -> str:
        """Ignore."""
        for _ in range(8):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass
        return "too late"

    assert ask(Toolbox([stubborn]), ToolCall("stubborn"))[0].outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("places", [1, 3])
def test_no_more_calls_run_at_once_than_there_are_places(places: int):
    running, most = 0, 0

    @tool(limits={"concurrency": places})
    async def work() -> str:
        """Work."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return ""

    results = ask(Toolbox([work]), *(ToolCall("work") for _ in range(20)))
    assert most == places and {each.outcome for each in results} == {Outcome.OK}


def test_waiting_for_a_place_is_not_the_tools_time():
    @tool(limits={"concurrency": 1, "timeout": 1.0})
    async def work() -> str:
        """Work."""
        await asyncio.sleep(0.3)
        return ""

    results = ask(Toolbox([work]), *(ToolCall("work") for _ in range(5)))
    assert {each.outcome for each in results} == {Outcome.OK}


def test_cancelled_waiters_give_their_place_back():
    @tool(limits={"concurrency": 1})
    async def work(seconds: float) -> str:
        """Work."""
        await asyncio.sleep(seconds)
        return ""

    async def run() -> None:
        async with Toolbox([work]) as box:

            async def one(seconds: float) -> None:
                async with box.session() as session:
                    await session.call(ToolCall("work", {"seconds": seconds}))

            tasks = [asyncio.create_task(one(3600)) for _ in range(5)]
            await asyncio.sleep(0.01)
            for task in tasks[::-1]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait_for(one(0), 10)
            assert box.lines["work"].gate is not None and box.lines["work"].gate.free == 1

    asyncio.run(run())


@settings(derandomize=True, deadline=None)
@given(rate=st.floats(0.5, 500), gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_no_second_holds_more_starts_than_the_rate_and_what_was_saved_up(rate: float, gaps: list[float]):
    pace, now, starts = Pace(rate), 0.0, []
    for gap in gaps:
        now += gap
        starts.append(now + pace.delay(now))
    for first in starts:
        # A window of one second takes the rate and at most one second's worth saved up, and the start on its edge.
        assert sum(first <= each < first + 1.0 for each in starts) <= 2 * max(rate, 1.0) + 1


def test_retries_repeat_infrastructure_failures_only():
    attempts = itertools.count(1)

    @tool(limits={"retries": 3, "backoff": 0.001})
    async def flap() -> str:
        """Fail twice."""
        if next(attempts) < 3:
            raise InfrastructureError("away")
        return "here"

    box = Toolbox([flap])
    result = ask(box, ToolCall("flap"))[0]
    assert (result.outcome, result.attempts, result.content) == (Outcome.OK, 3, "here")
    assert box.metrics()["tools/flap/retries"] == 2.0

    calls = itertools.count(1)

    @tool(limits={"retries": 3, "backoff": 0.001})
    async def wrong() -> str:
        """Fail."""
        next(calls)
        raise ValueError

    assert ask(Toolbox([wrong]), ToolCall("wrong"))[0].attempts == 1 and next(calls) == 2


def test_the_last_failure_is_the_answer_when_retries_are_used_up():
    result = ask(Toolbox([hang.replaced(limits={"retries": 2, "backoff": 0.001})]), ToolCall("hang"))[0]
    assert (result.outcome, result.attempts) == (Outcome.TIMEOUT, 3)


def test_the_breaker_opens_after_failures_and_lets_one_probe():
    breaker = Breaker(2, cooldown=10.0)
    for now in (0.0, 1.0):
        assert breaker.allows(now)
        breaker.report(True, now)
    assert not breaker.allows(5.0)  # open until 11
    assert breaker.allows(11.5) and not breaker.allows(11.5)  # one probe
    breaker.report(True, 12.0)
    assert not breaker.allows(21.0)  # open until 22
    assert breaker.allows(22.5)
    breaker.report(False, 23.0)
    assert breaker.allows(23.0) and breaker.allows(23.0)  # closed


def test_an_open_breaker_answers_without_running():
    runs = itertools.count(0)

    @tool(limits={"breaker": 3, "cooldown": 3600})
    async def down() -> str:
        """Fail."""
        next(runs)
        raise InfrastructureError("down")

    async def run() -> list[ToolResult]:
        async with Toolbox([down]) as box, box.session() as session:
            return [await session.call(ToolCall("down")) for _ in range(10)]

    results = asyncio.run(run())
    assert {each.outcome for each in results} == {Outcome.INFRA_ERROR}
    assert next(runs) == 3 and [each.attempts for each in results] == [1] * 3 + [0] * 7


class Words:
    """A tokenizer whose tokens are words: easy to count by eye."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
        return text.split(" ")

    def decode(self, ids: list[str]) -> str:
        return " ".join(ids)


def test_an_answer_is_cut_by_tokens_and_says_so():
    @tool(isolation="inline", limits={"output_tokens": 3})
    def speak(n: int) -> str:
        """Speak."""
        return " ".join(f"w{i}" for i in range(n))

    box = Toolbox([speak], tokenizer=Words())
    short, long = ask(box, ToolCall("speak", {"n": 3}), ToolCall("speak", {"n": 5}))
    assert (short.content, short.truncated) == ("w0 w1 w2", False)
    assert (long.content, long.truncated) == ("w0 w1 w2\n[cut: the first 3 of 5 tokens are shown]", True)
    assert box.metrics()["tools/speak/truncated"] == 1.0


def test_a_flood_is_cut_before_it_is_tokenised():
    seen = []

    class Watching(Words):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
            seen.append(len(text))
            return super().encode(text)

    text, count, cut = Cutter(Watching()).cut("ab " * 10_000_000, 10)
    assert cut and count == 10 and max(seen) <= 160 and "more than" in text


@settings(derandomize=True, deadline=None)
@given(text=st.text(max_size=300), limit=st.integers(1, 60))
def test_without_a_tokenizer_a_cut_text_is_a_prefix_within_the_limit(text: str, limit: int):
    shown, count, cut = Cutter().cut(text, limit)
    kept = shown.rsplit("\n[cut", 1)[0] if cut else shown
    assert text.startswith(kept) and len(kept.encode()) <= 3 * limit and count <= limit
    assert cut == (len(text.encode()) > 3 * limit)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        pytest.param(lambda: Limits(timeout=0), "timeout must be a positive number", id="zero seconds"),
        pytest.param(lambda: Limits(concurrency=1.5), "concurrency must be a positive whole", id="half a place"),
        pytest.param(lambda: Limits(retries=-1), "retries", id="negative retries"),
        pytest.param(lambda: Limits(rate=float("nan")), "rate", id="nan"),
        pytest.param(lambda: Limits().replaced({"timout": 1}), "did you mean 'timeout'", id="misspelt"),
        pytest.param(lambda: Budget(calls=True), "calls", id="a boolean"),
        pytest.param(lambda: Budget.from_mapping([1]), "wanted a mapping", id="a list"),
        pytest.param(
            lambda: hang.replaced(limits={"memory_mb": 10}), "isolation 'process'", id="memory without process"
        ),
        pytest.param(lambda: hang.replaced(isolation="proces"), "did you mean 'process'", id="misspelt isolation"),
        pytest.param(lambda: hang.replaced(isolation="thread"), "async function runs inline", id="async in a thread"),
        pytest.param(lambda: hang.replaced(domian="x"), "did you mean 'domain'", id="misspelt field"),
    ],
)
def test_limits_that_make_no_sense_raise_at_once(build: Any, words: str):
    from verl_toolrl.errors import AuthorError

    with pytest.raises(AuthorError, match=words):
        build()


class Sum(StatefulTool):
    runs = 0

    def __init__(self, start: int = 0) -> None:
        self.value = start

    @tool(isolation="inline")
    def more(self, by: int) -> int:
        """Add."""
        Sum.runs += 1
        self.value += by
        return self.value


def test_recorded_answers_replay_without_running_also_with_state(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    calls = [ToolCall("more", {"by": 1}), ToolCall("more", {"by": 1}), ToolCall("more", {"by": 5})]
    recorded = ask(Toolbox([Sum], recording=Recording(path, "record")), *calls)
    before = Sum.runs
    replayed = ask(Toolbox([Sum], recording=Recording(path, "replay")), *calls)
    assert [each.value for each in recorded] == [each.value for each in replayed] == [1, 2, 7]
    assert Sum.runs == before
    # Another beginning of the trajectory, or another order, is another answer: not recorded.
    for other in (
        ask(Toolbox([Sum], recording=Recording(path, "replay")), calls[2]),
        ask(Toolbox([Sum], recording=Recording(path, "replay")), calls[0], state={"Sum": {"start": 3}}),
    ):
        assert other[0].outcome is Outcome.INFRA_ERROR


def test_a_cache_runs_what_it_does_not_know_and_keeps_no_failures(tmp_path: Path):
    runs = itertools.count(1)

    @tool(isolation="inline")
    def look(x: int) -> int:
        """Look."""
        if next(runs) == 1:
            raise InfrastructureError("away")
        return x

    path = tmp_path / "cache.jsonl"
    for expected in (Outcome.INFRA_ERROR, Outcome.OK, Outcome.OK):
        result = ask(Toolbox([look], recording=Recording(path, "cache")), ToolCall("look", {"x": 4}))[0]
        assert result.outcome is expected
    assert next(runs) == 3
    assert [json.loads(line)["tool"] for line in path.read_text().splitlines()] == ["look"]


@pytest.mark.parametrize("text", ["not json\n", '{"key": "a"}\n', '{"key": "a", "result": {"outcome": "nope"}}\n'])
def test_a_broken_recording_raises_and_names_the_line(tmp_path: Path, text: str):
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="line 1"):
        Recording(path, "replay")


def test_a_recording_that_does_not_exist_cannot_be_replayed(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        Recording(tmp_path / "none.jsonl", "replay")
