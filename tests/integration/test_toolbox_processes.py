"""Tools in worker processes: killed on time-out, limited in memory, replaced when they die."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from verl_toolrl.errors import InfrastructureError, ToolDefinitionError
from verl_toolrl.toolbox import Toolbox, tool
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

_MODULE = '''
import ctypes, os, sys, time
from datetime import date
from verl_toolrl.errors import InfrastructureError
from verl_toolrl.toolbox import ModelMistake, StatefulTool, ToolError, tool

_leak = []

@tool(isolation="process")
def pid(x: int = 0) -> int:
    """Process id."""
    return os.getpid()

@tool(isolation="process", limits={"timeout": 0.5})
def hang() -> str:
    """Hang, deaf to polite signals, with a child."""
    import signal, subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "987654"])
    time.sleep(3600)

@tool(isolation="process")
def die(how: str) -> str:
    """Die."""
    if how == "exit":
        os._exit(3)
    if how == "signal":
        os.kill(os.getpid(), 9)
    if how == "segfault":
        ctypes.string_at(0)
    sys.exit(4)

@tool(isolation="process", limits={"memory_mb": 400})
def eat(mb: int) -> int:
    """Eat memory at once."""
    return len(b"x" * (mb << 20))

@tool(isolation="process", limits={"memory_mb": 600, "concurrency": 1})
def leak(mb: int) -> int:
    """Leak memory, call by call."""
    _leak.append(b"x" * (mb << 20))
    return os.getpid()

@tool(isolation="process", limits={"output_tokens": 100})
def flood(mb: int) -> str:
    """Flood."""
    return "x" * (mb << 20)

@tool(isolation="process")
def fail(kind: str) -> str:
    """Fail."""
    raise {"mistake": ModelMistake, "tool": ToolError, "infra": InfrastructureError, "odd": KeyError}[kind]("because")

@tool(isolation="process")
def weekday(day: date) -> str:
    """Weekday."""
    return day.strftime("%A")

@tool(isolation="process")
def odd() -> object:
    """No JSON form."""
    return object()

@tool(isolation="process")
def big() -> int:
    """An integer of 133 bits."""
    return 10 ** 40

class Shelf(StatefulTool):
    def __init__(self, books: int = 0) -> None:
        self.books = books

    @tool(isolation="process", limits={"timeout": 5.0})
    def put(self, n: int) -> list[int]:
        """Put."""
        self.books += n
        if n < 0:
            time.sleep(3600)
        return [self.books, os.getpid()]

    def snapshot(self):
        return {"books": self.books}

class Cracked(Shelf):
    def snapshot(self):
        raise KeyError("because")
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("processes") / "process_tools.py"
    path.write_text(_MODULE)
    spec = importlib.util.spec_from_file_location("process_tools", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["process_tools"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def ask(tools: list[Any], *calls: ToolCall, **options: Any) -> list[ToolResult]:
    async def run() -> list[ToolResult]:
        async with Toolbox(tools) as box, box.session("t", **options) as session:
            results = [await session.call(call) for call in calls]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    before = set(os.listdir("/proc/self/fd"))
    results = asyncio.run(run())
    assert _children() == [] and set(os.listdir("/proc/self/fd")) == before
    return results


def _children() -> list[str]:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def test_a_worker_serves_many_calls_in_a_process_of_its_own(module: ModuleType):
    results = ask([module.pid], *(ToolCall("pid") for _ in range(5)))
    assert len({each.value for each in results}) == 1 and results[0].value != os.getpid()


def test_a_tool_that_hangs_is_killed_with_all_that_it_started(module: ModuleType):
    hung, after = ask([module.hang, module.pid], ToolCall("hang"), ToolCall("pid"))
    assert (hung.outcome, after.outcome) == (Outcome.TIMEOUT, Outcome.OK)
    assert hung.seconds < 30
    assert subprocess.run(["pgrep", "-f", "sleep 987654"], capture_output=True).stdout == b""


@pytest.mark.parametrize("how", ["exit", "signal", "segfault"])
def test_a_tool_that_dies_with_its_process_is_an_infrastructure_failure(module: ModuleType, how: str):
    died, after = ask([module.die, module.pid], ToolCall("die", {"how": how}), ToolCall("pid"))
    assert (died.outcome, after.outcome) == (Outcome.INFRA_ERROR, Outcome.OK)
    assert "died" in str(died.error)


def test_sys_exit_ends_the_call_and_not_the_worker(module: ModuleType):
    assert ask([module.die], ToolCall("die", {"how": "sys"}))[0].outcome is Outcome.TOOL_ERROR


def test_memory_is_limited_and_the_failure_is_infrastructure(module: ModuleType):
    small, large, after = ask([module.eat], *(ToolCall("eat", {"mb": mb}) for mb in (10, 2000, 10)))
    assert [each.outcome for each in (small, large, after)] == [Outcome.OK, Outcome.INFRA_ERROR, Outcome.OK]


def test_a_worker_that_swells_is_replaced_before_it_fails(module: ModuleType):
    results = ask([module.leak], *(ToolCall("leak", {"mb": 100}) for _ in range(12)))
    assert {each.outcome for each in results} == {Outcome.OK}
    assert len({each.value for each in results}) > 1


def test_a_flood_stays_in_the_worker(module: ModuleType):
    result = ask([module.flood], ToolCall("flood", {"mb": 50}))[0]
    assert result.outcome is Outcome.OK and result.truncated and len(result.content) < 2000


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (ToolCall("fail", {"kind": "mistake"}), Outcome.MODEL_ERROR),
        (ToolCall("fail", {"kind": "tool"}), Outcome.TOOL_ERROR),
        (ToolCall("fail", {"kind": "infra"}), Outcome.INFRA_ERROR),
        (ToolCall("fail", {"kind": "odd"}), Outcome.TOOL_ERROR),
        (ToolCall("weekday", {"day": "no date"}), Outcome.MODEL_ERROR),
        (ToolCall("odd"), Outcome.TOOL_ERROR),
    ],
    ids=str,
)
def test_outcomes_cross_the_border(module: ModuleType, call: ToolCall, outcome: Outcome):
    result = ask([module.fail, module.weekday, module.odd], call)[0]
    assert result.outcome is outcome and result.error


def test_values_cross_the_border(module: ModuleType):
    day, big = ask([module.weekday, module.big], ToolCall("weekday", {"day": "2026-01-01"}), ToolCall("big"))
    assert (day.value, big.content) == ("Thursday", str(10**40))


def test_a_state_lives_in_one_worker_for_its_trajectory(module: ModuleType):
    async def run() -> None:
        async with Toolbox([module.Shelf]) as box:
            async with box.session(state={"Shelf": {"books": 5}}) as one, box.session() as two:
                first = (await one.call(ToolCall("put", {"n": 1}))).value
                second = (await one.call(ToolCall("put", {"n": 1}))).value
                other = (await two.call(ToolCall("put", {"n": 1}))).value
                assert (first[0], second[0], other[0]) == (6, 7, 1)
                assert first[1] == second[1] != other[1]
                assert await one.snapshot() == {"Shelf": {"books": 7}}
            async with box.session() as third:  # a worker that comes back carries nothing over
                assert (await third.call(ToolCall("put", {"n": 1}))).value[0] == 1

    asyncio.run(run())
    assert _children() == []


def test_a_state_that_no_call_has_touched_is_made_for_its_picture(module: ModuleType):
    async def run() -> None:
        async with Toolbox([module.Shelf]) as box:
            async with box.session(state={"Shelf": {"books": 2**63}}) as session:
                assert await session.snapshot() == {"Shelf": {"books": 2**63}}
                await session.call(ToolCall("put", {"n": 2**63}))
                assert await session.snapshot() == {"Shelf": {"books": 2**64}}  # more than a frame's integers hold
            async with box.session() as session:
                assert await session.snapshot() == {"Shelf": {"books": 0}}

    asyncio.run(run())
    assert _children() == []


def test_a_state_whose_worker_died_has_no_picture(module: ModuleType):
    async def run() -> None:
        async with Toolbox([module.Shelf]) as box, box.session() as session:
            worker = (await session.call(ToolCall("put", {"n": 1}))).value[1]
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(InfrastructureError, match="state Shelf .*the worker process died"):
                await session.snapshot()

    asyncio.run(run())


def test_a_snapshot_that_raises_in_a_worker_is_its_authors_mistake(module: ModuleType):
    async def run() -> None:
        async with Toolbox([module.Cracked]) as box, box.session() as session:
            with pytest.raises(ToolDefinitionError, match=r"'put'.*process_tools.py:\d+ in snapshot: KeyError"):
                await session.snapshot()

    asyncio.run(run())


def test_a_state_whose_call_was_stopped_is_lost_and_says_so(module: ModuleType):
    tools = [each.replaced(limits={"timeout": 0.5}) for each in module.Shelf.tools()]
    hung, after = ask(tools, ToolCall("put", {"n": -1}), ToolCall("put", {"n": 1}))
    assert (hung.outcome, after.outcome) == (Outcome.TIMEOUT, Outcome.INFRA_ERROR)
    assert "lost" in str(after.error)


def test_a_function_that_no_other_process_can_find_raises_when_the_toolbox_is_made():
    @tool(isolation="process")
    def local() -> str:
        """Local."""
        return ""

    with pytest.raises(ToolDefinitionError, match="top level of a module"):
        Toolbox([local])


def test_workers_die_with_their_trainer(tmp_path: Path, module: ModuleType):
    script = tmp_path / "trainer.py"
    script.write_text(
        "import asyncio, os, signal\n"
        "from verl_toolrl.toolbox import Toolbox, tool\n"
        "from verl_toolrl.trajectory import ToolCall\n"
        "@tool(isolation='process')\n"
        "def pid() -> int:\n"
        "    'Process id.'\n"
        "    return os.getpid()\n"
        "async def main():\n"
        "    async with Toolbox([pid]) as box, box.session() as session:\n"
        "        print((await session.call(ToolCall('pid'))).content, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    worker = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()


def test_a_script_without_main_guard_is_told_so_instead_of_forking_without_end(tmp_path: Path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import asyncio\n"
        "from verl_toolrl.toolbox import Toolbox, tool\n"
        "from verl_toolrl.trajectory import ToolCall\n"
        "@tool(isolation='process')\n"
        "def one() -> int:\n"
        "    'One.'\n"
        "    return 1\n"
        "async def main():\n"
        "    async with Toolbox([one]) as box, box.session() as session:\n"
        "        print(await session.call(ToolCall('one')))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert "__main__" in done.stdout and done.stdout.count("ToolResult") == 2
