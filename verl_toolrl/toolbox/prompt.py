"""Tasks that begin at once, up to their first wait, instead of in a later turn of the event loop.

When hundreds of trajectories call at the same time, the first call would otherwise start only after the last one has
been set up. Python 3.12 knows this as eager tasks; here it works on 3.11 too, with the functions that asyncio documents
for code that steps through coroutines itself. During its first step a task is the current one and in its own context,
as ever; what it then has to say is heard in a later turn, so that whoever called never waits for less than one.

    task, context = new_task(loop, work, "name")     # work is a coroutine that awaits in_two(...) before anything else
    first_step(loop, task, work, context)
"""

from __future__ import annotations

import asyncio
import sys
import types
from asyncio import _enter_task, _leave_task, current_task
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context, copy_context
from typing import Any

__all__ = ["first_step", "in_two", "new_task"]

_TASKS_TAKE_A_CONTEXT = sys.version_info >= (3, 11)


@types.coroutine
def in_two(function: Callable[..., Coroutine[Any, Any, Any]], arguments: Mapping[str, Any]) -> Generator[Any, Any, Any]:
    """Await `function(**arguments)`, with a pause after its first step: there `first_step` stops, and the task goes
    on."""
    try:
        work = function(**arguments)
        waits_for = work.send(None)
    except StopIteration as end:
        yield
        return end.value
    except BaseException:
        yield
        raise
    # A coroutine marks what it waits for, and its task takes the mark off. Others may wait for the same in the pause.
    marked = getattr(waits_for, "_asyncio_future_blocking", False)
    if marked:
        waits_for._asyncio_future_blocking = False
    try:
        yield
        if marked:
            waits_for._asyncio_future_blocking = True
    except asyncio.CancelledError as exc:
        # A task leaves its cancellation to what it waits for, if that takes it.
        if marked and waits_for.cancel():
            waits_for._asyncio_future_blocking = True
        else:
            try:
                waits_for = work.throw(exc)
            except StopIteration as end:
                return end.value
    while True:
        try:
            yield waits_for
        except BaseException as exc:
            try:
                waits_for = work.throw(exc)
            except StopIteration as end:
                return end.value
        else:
            return (yield from work.__await__())


def new_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None], name: str
) -> tuple[asyncio.Task[None], Context | None]:
    """Make a task, and return with it the context for `first_step`; None where tasks are not to begin at once."""
    if not _TASKS_TAKE_A_CONTEXT or loop.get_task_factory() is not None:
        return loop.create_task(work, name=name), None
    context = copy_context()
    return asyncio.Task(work, loop=loop, name=name, context=context), context


def first_step(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], work: Coroutine[Any, Any, None], context: Context
) -> None:
    """Let `work`, of which `task` was made just now, run until the pause of its `in_two`."""
    outer = current_task(loop)
    if outer is not None:
        _leave_task(loop, outer)
    _enter_task(loop, task)
    try:
        context.run(work.send, None)
    finally:
        _leave_task(loop, task)
        if outer is not None:
            _enter_task(loop, outer)
