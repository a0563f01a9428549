"""A thousand trajectories against tools that do everything wrong: nothing lost, nothing hangs, each outcome right."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import itertools
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.toolbox import StatefulTool, Toolbox, ToolError, tool
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

OK, MODEL, TOOL, TIME, INFRA = (
    Outcome.OK,
    Outcome.MODEL_ERROR,
    Outcome.TOOL_ERROR,
    Outcome.TIMEOUT,
    Outcome.INFRA_ERROR,
)
_SHORT = {"timeout": 0.2, "output_tokens": 200}

_PROCESS_TOOLS = '''
import os, time
from verl_toolrl.toolbox import tool

_kept = []

@tool(isolation="process", limits={"timeout": 1.0, "concurrency": 4})
def process_hangs() -> str:
    """Hang."""
    time.sleep(3600)

@tool(isolation="process", limits={"concurrency": 4})
def process_dies() -> str:
    """Die."""
    os._exit(9)

@tool(isolation="process", limits={"memory_mb": 500, "concurrency": 2})
def process_leaks() -> int:
    """Leak."""
    _kept.append(b"x" * (20 << 20))
    return len(_kept)
'''


@pytest.fixture(scope="module")
def process_tools(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("faults") / "fault_tools.py"
    path.write_text(_PROCESS_TOOLS)
    spec = importlib.util.spec_from_file_location("fault_tools", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["fault_tools"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@tool(limits=_SHORT)
async def hangs() -> str:
    """Hang."""
    await asyncio.sleep(3600)
    return ""


@tool(limits=_SHORT)
async def ignores_cancellation() -> str:
    """Swallow the cancellation and go on for a while."""
    for _ in range(3):
        try:
            await asyncio.sleep(0.3)
        except asyncio.CancelledError:
            pass
    return "too late"


# A thread that came back by itself while the machine is busy would be in time: these wait until nobody asks any more.
released = threading.Event()


@tool(limits=_SHORT)
def thread_hangs() -> str:
    """Hang in a thread."""
    released.wait(600)
    return ""


@tool
async def crashes() -> str:
    """Crash."""
    raise ZeroDivisionError("inside")


class Odd(BaseException):
    def __str__(self) -> str:
        raise SystemExit


@tool
async def raises_oddly(kind: int) -> str:
    """Raise something odd."""
    raise (Odd(), SystemExit(1), GeneratorExit(), asyncio.CancelledError(), StopIteration(), KeyboardInterrupt())[kind]


@tool(isolation="inline", limits={"output_tokens": 50})
def floods() -> str:
    """Flood."""
    return "flood " * 1_000_000


@tool(isolation="inline", returns={"type": "array", "items": {"type": "integer"}})
def garbage() -> Any:
    """Break its own schema."""
    return ["x"]


@tool(isolation="inline")
def not_serialisable() -> Any:
    """Return a lock."""
    return threading.Lock()


_flaps = itertools.count()


@tool(limits={"retries": 2, "backoff": 0.001})
async def flaps() -> str:
    """Fail every other time."""
    if next(_flaps) % 2 == 0:
        raise ConnectionResetError
    return "here"


_needs = Counter[int]()


@tool(limits={"retries": 3, "backoff": 0.001})
async def needs_retries(i: int) -> str:
    """Answer at the third attempt."""
    _needs[i] += 1
    if _needs[i] < 3:
        raise InfrastructureError("not yet")
    return "here"


@tool
async def blocks_the_loop() -> str:
    """Block."""
    time.sleep(0.01)
    return "done"


@tool(limits=_SHORT, arguments_cause_timeout=True)
async def runs_what_the_model_wrote() -> str:
    """Take as long as the arguments say."""
    await asyncio.sleep(3600)
    return ""


class Notes(StatefulTool):
    alive = 0

    def __init__(self) -> None:
        Notes.alive += 1
        self.notes: list[str] = []

    @tool(isolation="inline")
    def note(self, text: str) -> int:
        """Note."""
        if text == "bad":
            raise ToolError("no")
        self.notes.append(text)
        return len(self.notes)

    def close(self) -> None:
        Notes.alive -= 1


@tool
async def fine(i: int) -> int:
    """Answer."""
    await asyncio.sleep(0)
    return i


def _plan(i: int) -> list[tuple[ToolCall, Outcome]]:
    """The calls of trajectory `i` and how each must end: always a good one, a note, and one fault after another."""
    faults: list[tuple[ToolCall, Outcome]] = [
        (ToolCall("hangs"), TIME),
        (ToolCall("ignores_cancellation"), TIME),
        (ToolCall("crashes"), TOOL),
        (ToolCall("raises_oddly", {"kind": i // 12 % 6}), TOOL),
        (ToolCall("floods"), OK),
        (ToolCall("garbage"), TOOL),
        (ToolCall("not_serialisable"), TOOL),
        (ToolCall("needs_retries", {"i": i}), OK),
        (ToolCall("runs_what_the_model_wrote"), MODEL),
        (ToolCall("note", {"text": "bad"}), TOOL),
        (ToolCall("no_such_tool", {"x": i}), MODEL),
        (ToolCall("fine", {"i": "not a number"}), MODEL),
    ]
    rare: list[tuple[ToolCall, Outcome]] = [
        (ToolCall("thread_hangs"), TIME),
        (ToolCall("process_dies"), INFRA),
        (ToolCall("process_leaks"), OK),
        (ToolCall("blocks_the_loop"), OK),
        (ToolCall("process_hangs"), TIME),
    ]
    calls = [(ToolCall("fine", {"i": i}), OK), (ToolCall("note", {"text": "good"}), OK), faults[i % len(faults)]]
    if i % 20 == 0:
        calls.append(rare[i // 20 % len(rare)])
    return calls


def test_a_thousand_trajectories_against_faulty_tools(process_tools: ModuleType):
    box = Toolbox(
        [
            hangs,
            ignores_cancellation,
            thread_hangs,
            crashes,
            raises_oddly,
            floods,
            garbage,
            not_serialisable,
            needs_retries,
            blocks_the_loop,
            runs_what_the_model_wrote,
            Notes,
            fine,
            process_tools.process_hangs,
            process_tools.process_dies,
            process_tools.process_leaks,
        ]
    )

    async def trajectory(i: int, places: asyncio.Semaphore) -> tuple[list[ToolResult], list[Outcome]]:
        plan = _plan(i)
        async with places, box.session(str(i)) as session:
            results = await session.call_all([call for call, _ in plan])
        return results, [outcome for _, outcome in plan]

    async def run() -> None:
        places = asyncio.Semaphore(64)
        async with box:
            rows = await asyncio.gather(*(trajectory(i, places) for i in range(1000)))
        wrong = [
            (call, w) for got, wanted in rows for call, w in zip(got, wanted, strict=True) if call.outcome is not w
        ]
        assert not wrong, wrong[:5]
        for i, (results, _) in enumerate(rows):
            assert results[0].value == i and results[1].value == 1
            assert all(each.content.isascii() and len(each.content) < 6000 for each in results)
        await asyncio.sleep(1.2)  # those that ignore their cancellation have ended by themselves
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = set(os.listdir("/proc/self/fd"))
    # Other tests of this process may have left threads that wait for work.
    earlier = set(threading.enumerate())
    released.clear()
    try:
        asyncio.run(run())
    finally:
        released.set()
    assert Notes.alive == 0 and not box.sessions
    assert sum(sum(row.values()) for row in box.counts.values()) == sum(len(_plan(i)) for i in range(1000))
    assert set(os.listdir("/proc/self/fd")) == before
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert children == []

    def ours() -> list[threading.Thread]:
        return [each for each in set(threading.enumerate()) - earlier if each.name.startswith("toolbox")]

    deadline = time.monotonic() + 30
    while ours() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not ours()


def test_a_tool_that_flaps_is_tried_again():
    async def run() -> list[ToolResult]:
        async with Toolbox([flaps]) as box, box.session() as session:
            return [await session.call(ToolCall("flaps")) for _ in range(20)]

    # It fails at every other attempt, beginning with the first: two attempts a call.
    assert {(each.outcome, each.attempts) for each in asyncio.run(run())} == {(OK, 2)}


def test_memory_is_flat_under_faults():
    box = Toolbox([crashes, floods, garbage, not_serialisable, Notes, fine])
    names = ["crashes", "floods", "garbage", "not_serialisable"]

    async def round_(count: int) -> None:
        for i in range(count):
            async with box.session(str(i)) as session:
                calls = [ToolCall(names[i % 4]), ToolCall("note", {"text": "good"}), ToolCall("fine", {"i": i})]
                await session.call_all(calls)

    async def run() -> tuple[int, int]:
        async with box:
            await round_(200)
            gc.collect()
            before = len(gc.get_objects())
            await round_(500)
            gc.collect()
            return before, len(gc.get_objects())

    before, after = asyncio.run(run())
    assert after - before < 200  # objects, of 500 trajectories with 1,500 calls
