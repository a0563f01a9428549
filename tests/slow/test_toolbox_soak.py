"""5,000 trajectories in one process: no growth of memory, tasks, threads, sockets or children."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import Outcome, ToolCall

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _measured() -> dict[str, int]:
    gc.collect()
    return {
        "rss_mb": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE >> 20,
        "objects": len(gc.get_objects()),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()),
    }


def test_five_thousand_trajectories_leave_nothing_behind():
    box = Toolbox.load("quickstart", threads=8)
    calls = [
        ToolCall("calculate", {"expression": "6 * 7"}),
        ToolCall("sell", {"item": "lamp", "quantity": 1}),
        ToolCall("add_contact", {"name": "New Person"}),
        ToolCall("query", {"sql": "UPDATE orders SET quantity = quantity + 1"}),
        ToolCall("search", {"query": "ferry winter"}),
        ToolCall("calculate", {"expresion": "1"}),
        ToolCall("unknown_tool"),
    ]

    async def trajectory(i: int) -> None:
        async with box.session(str(i)) as session:
            results = await session.call_all(calls)
            assert [each.outcome for each in results[:5]] == [Outcome.OK] * 5
            await session.snapshot()
            if i % 50 == 0:
                raise KeyError("a rollout that fails")

    async def rounds(count: int) -> None:
        for start in range(0, count, 100):
            ended = await asyncio.gather(*(trajectory(i) for i in range(start, start + 100)), return_exceptions=True)
            assert all(each is None or isinstance(each, KeyError) for each in ended), ended

    async def run() -> tuple[dict[str, int], dict[str, int]]:
        async with box:
            await rounds(1000)
            before = _measured()
            await rounds(4000)
            return before, _measured()

    before, after = asyncio.run(run())
    for key in ("tasks", "threads", "descriptors", "children"):
        assert after[key] <= before[key], (key, before, after)
    assert after["objects"] - before["objects"] < 500, (before, after)
    assert after["rss_mb"] - before["rss_mb"] <= 8, (before, after)


def test_five_hundred_programs_in_the_sandbox_leave_nothing_behind(walls: frozenset[str]):
    if not walls:
        pytest.skip("this kernel grants no means to wall code in")
    box = Toolbox.load("python_sandbox")

    async def trajectory(i: int) -> None:
        async with box.session(str(i)) as session:
            result = await session.call(ToolCall("run_python", {"code": f"print({i})"}))
            assert result.content == f"{i}\n", result

    async def run() -> tuple[dict[str, int], dict[str, int]]:
        async with box:
            await asyncio.gather(*(trajectory(i) for i in range(50)))
            before = _measured()
            for start in range(0, 450, 50):
                await asyncio.gather(*(trajectory(i) for i in range(start, start + 50)))
            return before, _measured()

    before, after = asyncio.run(run())
    for key in ("tasks", "threads", "descriptors", "children"):
        assert after[key] <= before[key], (key, before, after)
    assert after["rss_mb"] - before["rss_mb"] <= 8, (before, after)
