"""A task that begins at once is like any other, only earlier."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from verl_toolrl.toolbox.prompt import first_step, in_two, new_task

begins_at_once = pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks take no context before 3.11")

who: ContextVar[str] = ContextVar("who", default="nobody")


def begun(work: Any) -> asyncio.Task[Any]:
    """Begin `work` as the toolbox does."""

    async def outer() -> Any:
        return await in_two(lambda: work, {})

    loop, outermost = asyncio.get_running_loop(), outer()
    task, context = new_task(loop, outermost, "begun")
    if context is not None:
        first_step(loop, task, outermost, context)
    return task


async def at_once() -> str:
    return "ready"


async def raises_at_once() -> str:
    raise LookupError("at once")


async def needs_an_argument(missing: str) -> str:
    return missing


async def after_a_turn() -> str:
    await asyncio.sleep(0)
    return "later"


async def raises_later() -> str:
    await asyncio.sleep(0.001)
    raise LookupError("later")


async def times_out() -> str:
    try:
        await asyncio.wait_for(asyncio.sleep(60), 0.001)
    except asyncio.TimeoutError:
        return "timed out"
    return ""


async def waits_for_a_failure() -> str:
    failing: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(failing.set_exception, LookupError("failed"))
    try:
        return await failing
    except LookupError as err:
        await asyncio.sleep(0)
        return f"caught {err}"


async def cancels_itself() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        return "went on"
    return ""


async def is_cancelled() -> str:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0.001, task.cancel)
    await asyncio.sleep(60)
    return ""


async def gathers() -> list[str]:
    return await asyncio.gather(at_once(), after_a_turn())


async def result_of(waiting: Awaitable[Any]) -> Any:
    try:
        return await waiting
    except (LookupError, asyncio.CancelledError) as err:
        return type(err), str(err)


@pytest.mark.parametrize(
    "work",
    [
        at_once,
        raises_at_once,
        after_a_turn,
        raises_later,
        times_out,
        waits_for_a_failure,
        cancels_itself,
        is_cancelled,
        gathers,
    ],
)
def test_it_ends_as_an_ordinary_task_does(work: Callable[[], Any]):
    async def both() -> tuple[Any, Any]:
        ordinary = await result_of(asyncio.create_task(work()))
        return ordinary, await result_of(begun(work()))

    ordinary, early = asyncio.run(both())
    assert ordinary == early


def test_a_function_that_cannot_be_called_raises_in_the_task():
    async def run() -> str:
        async def outer() -> Any:
            return await in_two(needs_an_argument, {})

        loop, outermost = asyncio.get_running_loop(), outer()
        task, context = new_task(loop, outermost, "begun")
        if context is not None:
            first_step(loop, task, outermost, context)
        with pytest.raises(TypeError, match="missing"):
            await task
        return "raised"

    assert asyncio.run(run()) == "raised"


@begins_at_once
def test_it_has_begun_before_the_event_loop_turns_but_is_not_done():
    seen: list[str] = []

    async def work() -> None:
        seen.append("begun")

    async def run() -> None:
        task = begun(work())
        assert seen == ["begun"] and not task.done()
        await task

    asyncio.run(run())


@begins_at_once
def test_its_first_step_is_its_own_task_and_context():
    async def work() -> tuple[str, Any]:
        first, asking = asyncio.current_task(), who.get()
        who.set("inner")
        await asyncio.sleep(0)
        assert asyncio.current_task() is first and who.get() == "inner"
        return asking, first

    async def run() -> None:
        who.set("outer")
        own = asyncio.current_task()
        task = begun(work())
        assert (who.get(), asyncio.current_task()) == ("outer", own)
        assert await task == ("outer", task)

    asyncio.run(run())


def test_one_may_begin_within_the_first_step_of_another_or_outside_of_tasks():
    async def nested() -> str:
        return await begun(after_a_turn())

    async def run() -> list[str]:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.Task[str]] = loop.create_future()
        loop.call_soon(lambda: made.set_result(begun(nested())))
        return [await begun(nested()), await (await made)]

    assert asyncio.run(run()) == ["later", "later"]


@begins_at_once
@pytest.mark.parametrize("by", ["future", "task", "gather"])
def test_a_task_cancelled_before_its_first_turn_cancels_what_it_waits_for(by: str):
    caught: list[type[BaseException]] = []

    async def run() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inner: Any = {
            "future": lambda: future,
            "task": lambda: asyncio.ensure_future(_wait(future)),
            "gather": lambda: asyncio.gather(_wait(future)),
        }[by]()

        async def work() -> None:
            try:
                await inner
            except BaseException as err:
                caught.append(type(err))
                raise

        task = begun(work())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    asyncio.run(run())
    assert caught == [asyncio.CancelledError]


async def _wait(future: asyncio.Future[None]) -> None:
    await future


def test_two_may_wait_for_one_future():
    """asyncio marks a future as waited for, and unmarks it when the first task has seen that."""

    async def run() -> list[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def work() -> int:
            return await future

        tasks = [begun(work()), asyncio.create_task(work()), begun(work())]
        await asyncio.sleep(0)
        future.set_result(1)
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [1, 1, 1]


def test_a_loop_with_a_task_factory_of_its_own_makes_the_tasks():
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work.__name__)
        return asyncio.Task(work, loop=loop, **options)

    async def run() -> str:
        asyncio.get_running_loop().set_task_factory(factory)
        return await begun(after_a_turn())

    assert asyncio.run(run()) == "later" and made[:1] == ["outer"]
