"""Tools of real MCP servers, over stdio and streamable HTTP, and ours served to a real client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.toolbox.mcp import McpServer
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

mcp = pytest.importorskip("mcp")

_SERVER = '''
import asyncio, os, sys
from typing import Literal
from pydantic import BaseModel
from mcp.server import MCPServer

server = MCPServer("demo")

class Point(BaseModel):
    x: int
    label: str | None = None

@server.tool()
async def add(a: int, b: int = 2) -> int:
    """Add numbers."""
    return a + b

@server.tool()
async def place(point: Point, mode: Literal["fast", "exact"] = "fast") -> str:
    """Place a point."""
    return f"{point.x} {point.label} {mode}"

@server.tool()
async def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)

@server.tool()
async def die() -> str:
    """Die."""
    os._exit(7)

@server.tool()
async def hang() -> str:
    """Hang."""
    await asyncio.sleep(3600)
    return ""

@server.tool()
async def pid() -> int:
    """Process id."""
    return os.getpid()

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(_SERVER)
    return str(path)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class HttpServer:
    """A server process that can be stopped and started again on its port."""

    def __init__(self, *command: str) -> None:
        self.port = _free_port()
        self._command = [each.replace("PORT", str(self.port)) for each in command]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the server does not listen")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def http_server(script: str) -> Iterator[HttpServer]:
    server = HttpServer(sys.executable, script, "PORT")
    yield server
    server.stop()


def _children() -> list[str]:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


async def _ask(box: Toolbox, *calls: ToolCall) -> list[ToolResult]:
    async with box.session("t") as session:
        return [await session.call(call) for call in calls]


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest, script: str) -> dict[str, Any]:
    if request.param == "stdio":
        return {"command": sys.executable, "args": [script]}
    return {"url": request.getfixturevalue("http_server").url}


def test_tools_are_found_and_called(server: dict[str, Any]):
    async def run() -> None:
        async with Toolbox([McpServer(**server)]) as box:
            assert list(box.tools) == ["add", "place", "fail", "die", "hang", "pid"]
            place = box.schemas(["place"])[0]["function"]["parameters"]
            assert place["properties"]["mode"]["enum"] == ["fast", "exact"]
            assert place["$defs"]["Point"]["required"] == ["x"]
            results = await _ask(
                box,
                ToolCall("add", {"a": "3"}),
                ToolCall("place", {"point": {"x": 1}}),
                ToolCall("add", {"b": 1}),
                ToolCall("fail", {"why": "because"}),
            )
            outcomes = [each.outcome for each in results]
            assert outcomes == [Outcome.OK, Outcome.OK, Outcome.MODEL_ERROR, Outcome.TOOL_ERROR]
            assert (results[0].content, results[0].value) == ("5", {"result": 5})
            assert results[1].content == "1 None fast"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = set(os.listdir("/proc/self/fd"))
    children = _children()
    asyncio.run(run())
    assert _children() == children and set(os.listdir("/proc/self/fd")) == before


def test_a_call_that_hangs_times_out_and_the_session_lives_on(server: dict[str, Any]):
    async def run() -> None:
        async with Toolbox([McpServer(**server, timeout=0.5, sessions=1)]) as box:
            hung, after = await _ask(box, ToolCall("hang"), ToolCall("add", {"a": 1}))
            assert (hung.outcome, after.outcome) == (Outcome.TIMEOUT, Outcome.OK)

    asyncio.run(run())


def test_sessions_are_pooled(script: str):
    async def run() -> None:
        async with Toolbox([McpServer(command=sys.executable, args=[script], sessions=3)]) as box:

            async def one() -> Any:
                async with box.session() as session:
                    return (await session.call(ToolCall("pid"))).content

            assert len(set(await asyncio.gather(*(one() for _ in range(30))))) == 3

    asyncio.run(run())
    assert _children() == []


_MODERN_ONLY = """
import json, sys

CACHE = {"ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
ANSWERS = {
    "server/discover": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **CACHE},
    "tools/list": {"tools": [{"name": "greet", "inputSchema": {"type": "object"}}], **CACHE},
    "tools/call": {"content": [{"type": "text", "text": "hello"}], "resultType": "complete"},
}
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"jsonrpc": "2.0", "id": asked.get("id")}
    if asked["method"] in ANSWERS:
        print(json.dumps({**answer, "result": ANSWERS[asked["method"]]}), flush=True)
    elif "id" in asked:
        print(json.dumps({**answer, "error": {"code": -32601, "message": "Method not found"}}), flush=True)
"""


def test_a_program_that_knows_no_handshake_is_spoken_to_without():
    async def run() -> None:
        async with Toolbox([McpServer(command=sys.executable, args=["-c", _MODERN_ONLY])]) as box:
            assert (await _ask(box, ToolCall("greet")))[0].content == "hello"

    asyncio.run(run())
    assert _children() == []


def test_large_arguments_and_answers_pass_at_the_same_time(script: str):
    async def run() -> None:
        async with Toolbox([McpServer(command=sys.executable, args=[script], sessions=2)]) as box, box.session() as own:
            line = box.lines["place"]
            line.tool = line.tool.replaced(limits={"output_tokens": None})
            labels = [str(i) * 300_000 for i in range(10)]
            calls = [ToolCall("place", {"point": {"x": 1, "label": each}}) for each in labels]
            assert [each.content for each in await own.call_all(calls)] == [f"1 {each} fast" for each in labels]

    asyncio.run(run())


def test_a_stdio_server_that_dies_is_started_again(script: str):
    async def run() -> None:
        async with Toolbox([McpServer(command=sys.executable, args=[script], sessions=1)]) as box:
            before, died = await _ask(box, ToolCall("pid"), ToolCall("die"))
            assert died.outcome is Outcome.INFRA_ERROR
            after = await _until_ok(box, ToolCall("pid"))
            assert after.content != before.content

    asyncio.run(run())
    assert _children() == []


async def _until_ok(box: Toolbox, call: ToolCall) -> ToolResult:
    """Call until it works; everything before must be an infrastructure failure."""
    for _ in range(600):
        result = (await _ask(box, call))[0]
        if result.outcome is Outcome.OK:
            return result
        assert result.outcome is Outcome.INFRA_ERROR, result
        await asyncio.sleep(0.05)
    raise AssertionError("never came back")


def test_an_http_server_that_comes_back_is_used_again(http_server: HttpServer):
    async def run() -> None:
        async with Toolbox([McpServer(url=http_server.url)]) as box:
            assert (await _ask(box, ToolCall("add", {"a": 1})))[0].outcome is Outcome.OK
            http_server.stop()
            gone = await _ask(box, *[ToolCall("add", {"a": 1})] * 4)
            assert {each.outcome for each in gone} == {Outcome.INFRA_ERROR}
            http_server.start()
            await _until_ok(box, ToolCall("add", {"a": 1}))

    asyncio.run(run())


def test_retries_reach_over_a_broken_session(script: str):
    """The call that finds a session broken is repeated on a new one where the tool's limits allow it."""

    async def run() -> None:
        server = McpServer(command=sys.executable, args=[script], sessions=1)
        async with Toolbox([server]) as box:
            await _ask(box, ToolCall("die"))
            await asyncio.sleep(0.3)
            line = box.lines["add"]
            line.tool = line.tool.replaced(limits={"retries": 20, "backoff": 0.1})
            result = (await _ask(box, ToolCall("add", {"a": 1})))[0]
            assert result.outcome is Outcome.OK

    asyncio.run(run())


def test_calls_in_the_air_do_not_outlive_the_toolbox(script: str):
    async def run() -> None:
        box = Toolbox([McpServer(command=sys.executable, args=[script], timeout=60)])
        await box.open()
        session = await box.session().__aenter__()
        step = asyncio.create_task(session.call_all([ToolCall("hang")] * 4))
        await asyncio.sleep(0.2)
        await box.aclose()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert _children() == []


MUTE = {"command": "sleep", "args": ["60"], "start_timeout": 0.5}
NO_SERVER = {"url": "http://127.0.0.1:9/mcp"}


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        pytest.param({"command": "no-such-program"}, ConfigError, "could not be started", id="no program"),
        pytest.param({"command": "true"}, InfrastructureError, "could not be started", id="a program that ends"),
        pytest.param(MUTE, InfrastructureError, "start_timeout", id="one that is mute"),
        pytest.param(
            {"command": "echo", "args": ["garbage"]},
            InfrastructureError,
            "could not be started",
            id="one that talks garbage",
        ),
        pytest.param(NO_SERVER, InfrastructureError, "could not be reached", id="no server"),
    ],
)
def test_a_server_that_is_missing_is_found_at_the_start(options: dict[str, Any], kind: type[Exception], words: str):
    async def run() -> None:
        with pytest.raises(kind, match=words):
            async with Toolbox([McpServer(**options)]):
                pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert _children() == []


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="url must begin with http:// or https://, found 'localhost:8000'"):
        McpServer(url="localhost:8000")


def test_sessions_that_wait_for_one_attempt_share_its_failure(monkeypatch: pytest.MonkeyPatch):
    attempts = []
    plain = McpServer.open
    monkeypatch.setattr(McpServer, "open", lambda server: attempts.append(1) or plain(server))

    async def run() -> list[Any]:
        box = Toolbox([McpServer(**NO_SERVER, sessions=1)])

        async def one() -> None:
            async with box.session("t"):
                pass

        first = await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
        return [*first, *await asyncio.gather(one(), return_exceptions=True)]

    results = asyncio.run(run())
    assert all(isinstance(each, InfrastructureError) and "could not be reached" in str(each) for each in results)
    assert 2 == len(attempts)  # of the twenty, and of the one that came later


def test_the_command_line_says_that_a_server_is_away(tmp_path: Path):
    (tmp_path / "set.yaml").write_text(f"tools: [{{mcp: {{url: '{NO_SERVER['url']}'}}}}]\n")
    command = [sys.executable, "-m", "verl_toolrl.cli", "tools", "list", "-t", "set.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert 1 == done.returncode and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: MCP server 'http://127.0.0.1:9/mcp' could not be reached: ")


def test_an_entry_of_a_tool_set_may_choose_and_rename(script: str, tmp_path: Path):
    (tmp_path / "set.yaml").write_text(
        f"tools:\n  - mcp: {{command: {sys.executable}, args: ['{script}']}}\n    only: [add]\n    prefix: demo_\n"
        "    limits: {retries: 1}\n"
    )

    async def run() -> None:
        box = Toolbox.load(tmp_path / "set.yaml")
        with pytest.raises(ConfigError, match="open the toolbox"):
            box.schemas()
        async with box:
            assert list(box.tools) == ["demo_add"] and box.tools["demo_add"].limits.retries == 1
            assert (await _ask(box, ToolCall("demo_add", {"a": 1})))[0].content == "3"

    asyncio.run(run())


_SERVE = [sys.executable, "-m", "verl_toolrl.cli", "tools", "serve"]


def test_our_tools_are_served_over_stdio_with_a_state_for_the_connection():
    async def run() -> None:
        parameters = mcp.StdioServerParameters(command=_SERVE[0], args=_SERVE[1:])
        async with mcp.Client(parameters) as client:
            tools = (await client.list_tools()).tools
            expected = Toolbox.load("quickstart")
            assert [each.name for each in tools] == list(expected.tools)
            assert [each.input_schema for each in tools] == [
                each["function"]["parameters"] for each in expected.schemas()
            ]
            await client.call_tool("sell", {"item": "lamp", "quantity": 1})
            left = await client.call_tool("check_stock", {"item": "lamp"})
            assert left.structured_content == {"item": "lamp", "quantity": 2, "price": 24.0}
            wrong = await client.call_tool("sell", {"item": "lamp", "quantity": 99})
            assert wrong.is_error and "Only 2" in wrong.content[0].text

    asyncio.run(run())
    assert _children() == []


_PRINTING = """
import asyncio
from verl_toolrl.toolbox import Toolbox, tool
from verl_toolrl.toolbox.limits import Limits
from verl_toolrl.toolbox.serve import serve_stdio

@tool(limits=Limits(output_tokens=None))
async def shout(word: str) -> str:
    "Say a word aloud."
    print("not JSON:", word, flush=True)
    return word.upper() + "\\u2028\\n" + "x" * 300_000

asyncio.run(serve_stdio(Toolbox([shout])))
"""


def test_what_a_served_tool_prints_stays_out_of_the_protocol(tmp_path: Path):
    (tmp_path / "server.py").write_text(_PRINTING)
    printed = tmp_path / "stderr.txt"

    async def run() -> list[str]:
        parameters = mcp.StdioServerParameters(command=sys.executable, args=[str(tmp_path / "server.py")])
        with printed.open("w") as errors:
            async with mcp.Client(mcp.stdio_client(parameters, errlog=errors)) as client:
                answers = await asyncio.gather(*(client.call_tool("shout", {"word": f"w{i}"}) for i in range(20)))
        return [each.content[0].text for each in answers]

    assert asyncio.run(run()) == [f"W{i}\u2028\n" + "x" * 300_000 for i in range(20)]
    assert sorted(printed.read_text().split()) == sorted(["not", "JSON:"] * 20 + [f"w{i}" for i in range(20)])


def test_a_server_whose_input_is_a_file_answers_what_it_holds(tmp_path: Path):
    """No pipe, so the SDK's own transport reads it."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    (tmp_path / "requests").write_text(json.dumps(request) + "\n")
    with (tmp_path / "requests").open() as source:
        done = subprocess.run(_SERVE, stdin=source, capture_output=True, text=True, timeout=60)
    assert {"jsonrpc": "2.0", "id": 1, "result": {}} == json.loads(done.stdout.splitlines()[0])


def test_our_tools_are_served_over_http_with_a_state_for_each_named_trajectory():
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    server = HttpServer(*_SERVE, "--http", "127.0.0.1:PORT")

    async def sold(headers: dict[str, str]) -> int:
        async with httpx2.AsyncClient(headers=headers) as http:
            async with mcp.Client(streamable_http_client(server.url, http_client=http)) as client:
                result = await client.call_tool("sell", {"item": "lamp", "quantity": 1})
                return result.structured_content["quantity"]

    async def run() -> list[int]:
        return [
            await sold(each) for each in ({"x-trajectory-id": "a"}, {"x-trajectory-id": "a"}, {"x-trajectory-id": "b"})
        ]

    try:
        assert asyncio.run(run()) == [2, 1, 2]
    finally:
        server.stop()


def test_one_toolbox_uses_another_over_mcp():
    async def run() -> None:
        async with Toolbox([McpServer(command=_SERVE[0], args=_SERVE[1:], sessions=1)]) as box:
            assert box.schemas() == Toolbox.load("quickstart").schemas()
            good, bad = await _ask(
                box, ToolCall("calculate", {"expression": "6 * 7"}), ToolCall("calculate", {"expression": "1 / 0"})
            )
            assert (good.content, bad.outcome) == ("42", Outcome.TOOL_ERROR)

    asyncio.run(run())


def test_a_toolbox_that_was_never_closed_opens_again_on_the_next_loop(script: str):
    box = Toolbox([McpServer(command=sys.executable, args=[script], sessions=1)])

    async def without_closing() -> None:
        assert (await _ask(box, ToolCall("add", {"a": 1})))[0].outcome is Outcome.OK

    asyncio.run(without_closing())

    async def closing() -> None:
        async with box:
            assert (await _ask(box, ToolCall("add", {"a": 1})))[0].outcome is Outcome.OK

    asyncio.run(closing())
