"""How fast the toolbox is: calls per second, many users of a slow tool, MCP over pooled sessions.

    python tests/benchmarks/bench_toolbox.py

Each row names a peer that is measured in the same run. On a machine that others use too, read the ratios. The users
are measured on uvloop too, where it is installed: Ray, and so verl, then runs its workers on that.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import verl_toolrl
from verl_toolrl.toolbox import Toolbox, tool
from verl_toolrl.toolbox.mcp import McpServer
from verl_toolrl.trajectory import Outcome, ToolCall

_SECONDS = 0.2
_USERS = 512


def _add_body(a: int, b: int, unit: str = "m") -> str:
    """Add two lengths.

    Args:
        a: First.
        b: Second.
        unit: Unit.
    """
    return f"{a + b} {unit}"


async def _add_async(a: int, b: int, unit: str = "m") -> str:
    """Add two lengths.

    Args:
        a: First.
        b: Second.
        unit: Unit.
    """
    return f"{a + b} {unit}"


add_inline = tool(name="add_inline", isolation="inline")(_add_body)
add_thread = tool(name="add_thread")(_add_body)
add_async = tool(name="add_async")(_add_async)


@tool
async def slow(i: int) -> int:
    """Take 200 ms."""
    await asyncio.sleep(_SECONDS)
    return i


@tool
def slow_thread(i: int) -> int:
    """Take 200 ms in a thread."""
    time.sleep(_SECONDS)
    return i


limited = slow.replaced(name="limited", limits={"concurrency": 64})

_ARGUMENTS = {"a": 1, "b": 2, "unit": "km"}


def _process_tool() -> Any:
    """A tool for worker processes must live in a module that they can import."""
    folder = tempfile.mkdtemp(prefix="bench-toolbox-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "bench_process_tool.py").write_text(
        "from verl_toolrl.toolbox import tool\n\n@tool(isolation='process')\n"
        "def add_process(a: int, b: int, unit: str = 'm') -> str:\n    'Add.'\n    return f'{a + b} {unit}'\n"
    )
    sys.path.insert(0, folder)
    import bench_process_tool  # type: ignore[import-not-found]

    return bench_process_tool.add_process


async def _rate(call: Callable[[], Awaitable[Any]], count: int) -> float:
    """Calls per second, one after the other; the best of three."""
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(count):
            await call()
        best = max(best, count / (time.perf_counter() - started))
    return best


async def _calls() -> Table:
    """One trajectory calls as fast as it can. Peers: `asyncio.wait_for`, and verl's own loop where it is installed."""
    table = Table(title="Calls per second, one at a time, with validation and time-out", title_justify="left")
    for column in ("tool", "calls/s", "us a call", "x of wait_for"):
        table.add_column(column, justify="right" if column != "tool" else "left")

    async def peer() -> None:
        await asyncio.wait_for(_add_async(**_ARGUMENTS), 30.0)

    async def through_verl() -> None:
        await verl_call(function_call, None)

    base = await _rate(peer, 10_000)
    rows = [("asyncio.wait_for, no validation", base)]
    try:
        verl_call, function_call = _verl_peer()
        rows.append(("verl 0.9 ToolAgentLoop._call_tool, no validation, no time-out", await _rate(through_verl, 5_000)))
    except ImportError:
        pass
    async with Toolbox([add_async, add_inline, add_thread, _process_tool()]) as box, box.session() as session:
        for name, count in (
            ("add_async", 20_000),
            ("add_inline", 20_000),
            ("add_thread", 5_000),
            ("add_process", 2_000),
        ):
            made = ToolCall(name, _ARGUMENTS)
            assert (await session.call(made)).content == "3 km"
            rows.append(
                (f"toolbox, {name.removeprefix('add_')}", await _rate(lambda made=made: session.call(made), count))
            )
    for label, rate in rows:
        table.add_row(label, f"{rate:,.0f}", f"{1e6 / rate:.1f}", f"{rate / base:.2f}")
    return table


def _verl_peer() -> tuple[Any, Any]:
    from types import SimpleNamespace

    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
    from verl.experimental.agent_loop.tool_parser import FunctionCall
    from verl.tools.function_tool import function_tool

    function_tool("bench_add")(_add_async)
    from verl.tools.function_tool import get_function_tool

    loop = SimpleNamespace(
        tools={"bench_add": get_function_tool("bench_add")},
        max_tool_response_length=256,
        tool_response_truncate_side="left",
    )
    call = FunctionCall(name="bench_add", arguments=json.dumps(_ARGUMENTS))
    return (lambda each, data: ToolAgentLoop._call_tool(loop, each, {}, data)), call


async def _bare(parallel: bool) -> float:
    async def user(_: int) -> None:
        if parallel:
            await asyncio.gather(*(asyncio.sleep(_SECONDS) for _ in range(3)))
        else:
            for _ in range(3):
                await asyncio.sleep(_SECONDS)

    return await _timed(lambda: asyncio.gather(*(user(i) for i in range(_USERS))))


async def _timed(run: Callable[[], Awaitable[Any]]) -> float:
    best = float("inf")
    for _ in range(3):
        gc.collect()
        started = time.perf_counter()
        await run()
        best = min(best, time.perf_counter() - started)
    return best


async def _users() -> Table:
    """512 trajectories, three calls each of a 200 ms tool. Peer: the same sleeps, in no tool."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    table = Table(title=f"{_USERS} users x 3 calls of a {_SECONDS * 1000:.0f} ms tool, {loop}", title_justify="left")
    for column in ("how", "seconds", "ideal", "x ideal", "bare sleeps x ideal"):
        table.add_column(column, justify="right" if column != "how" else "left")
    async with Toolbox([slow, slow_thread, limited], threads=3 * _USERS) as box:
        # Reading calls out of a model's text is another part's work.
        written = {name: [ToolCall(name, {"i": k}) for k in range(3)] for name in box.tools}

        async def user(i: int, name: str, parallel: bool) -> None:
            async with box.session(str(i)) as session:
                steps = [written[name]] if parallel else [[call] for call in written[name]]
                for step in steps:
                    for result in await session.call_all(step):
                        assert result.outcome is Outcome.OK

        for label, name, parallel, ideal in (
            ("async, three steps of one call", "slow", False, 3 * _SECONDS),
            ("async, one step of three calls", "slow", True, _SECONDS),
            ("async, limit of 64 at once", "limited", True, 3 * _USERS / 64 * _SECONDS),
            ("thread, three steps of one call", "slow_thread", False, 3 * _SECONDS),
        ):
            seconds = await _timed(lambda n=name, p=parallel: asyncio.gather(*(user(i, n, p) for i in range(_USERS))))
            bare = f"{await _bare(parallel) / ideal:.2f}" if name == "slow" else "-"
            table.add_row(label, f"{seconds:.3f}", f"{ideal:.3f}", f"{seconds / ideal:.2f}", bare)
    return table


_MCP_SERVER = """
import asyncio
from verl_toolrl.toolbox import Toolbox, tool
from verl_toolrl.toolbox.serve import serve_stdio

@tool
async def add(a: int, b: int) -> int:
    "Add."
    return a + b

asyncio.run(serve_stdio(Toolbox([add])))
"""


async def _mcp() -> Table:
    """Calls per second of a trivial tool over MCP stdio, 128 at once. Peer: the bare SDK, one session."""
    from mcp import Client, StdioServerParameters

    table = Table(title="MCP over stdio, calls per second, 128 at once", title_justify="left")
    for column in ("how", "calls/s", "x of bare SDK", "CPU us a call here"):
        table.add_column(column, justify="right" if column != "how" else "left")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "server.py")
        script.write_text(_MCP_SERVER)
        # A server inherits little of the environment; it has to be the same source as what is measured here.
        program: dict[str, Any] = {
            "command": sys.executable,
            "args": [str(script)],
            "env": {"PYTHONPATH": str(Path(verl_toolrl.__file__).parents[1])},
        }

        async def many(call: Callable[[int], Awaitable[Any]], count: int = 3000) -> tuple[float, float]:
            async def worker(i: int) -> None:
                for k in range(count // 128):
                    await call(k)

            await asyncio.gather(*(worker(i) for i in range(8)))
            best = (0.0, 0.0)
            for _ in range(3):
                started, cpu = time.perf_counter(), time.process_time()
                await asyncio.gather(*(worker(i) for i in range(128)))
                done = count // 128 * 128
                best = max(best, (done / (time.perf_counter() - started), (time.process_time() - cpu) / done * 1e6))
            return best

        async with Client(StdioServerParameters(**program), cache=None) as client:
            base, cpu = await many(lambda k: client.call_tool("add", {"a": k, "b": 1}))
        table.add_row("bare SDK, one session", f"{base:,.0f}", "1.00", f"{cpu:.0f}")
        for sessions in (1, 2, 3):
            server = McpServer(**program, sessions=sessions)
            async with Toolbox([server]) as box, box.session() as session:

                async def call(k: int, session: Any = session) -> None:
                    result = await session.call(ToolCall("add", {"a": k, "b": 1}))
                    assert result.outcome is Outcome.OK, result

                rate, cpu = await many(call)
            table.add_row(f"toolbox, {sessions} sessions", f"{rate:,.0f}", f"{rate / base:.2f}", f"{cpu:.0f}")
    return table


def main() -> None:
    """Print the tables."""
    console = Console()
    load = os.getloadavg()[0]
    python = subprocess.check_output([sys.executable, "--version"], text=True).strip()
    console.print(f"{python}, {os.cpu_count()} cores, load {load:.1f}")
    console.print(asyncio.run(_calls()))
    # The peer has loaded torch and verl. Looking through that for garbage takes half a second, whenever it happens.
    gc.collect()
    gc.freeze()
    console.print(asyncio.run(_users()))
    try:
        import uvloop
    except ImportError:
        pass
    else:
        console.print(uvloop.run(_users()))
    console.print(asyncio.run(_mcp()))


if __name__ == "__main__":
    main()
