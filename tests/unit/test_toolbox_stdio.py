"""MCP messages through pipes: whole, in order, few writes, and an end on every path."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mcp")

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from verl_toolrl.toolbox import stdio
from verl_toolrl.toolbox.stdio import Incoming, Outgoing, program

_MESSAGES = (
    JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "ü\u2028x"}),
    JSONRPCRequest(jsonrpc="2.0", id="a", method="ping", params={"n": [1, 2]}),
    JSONRPCNotification(jsonrpc="2.0", method="notifications/progress"),
    JSONRPCError.model_validate({"jsonrpc": "2.0", "id": 2, "error": {"code": -32603, "message": "no"}}),
)


def line(message: Any) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()


async def all_of(incoming: Incoming) -> list[Any]:
    return [each if isinstance(each, Exception) else each.message async for each in incoming]


@given(
    order=st.lists(st.integers(0, len(_MESSAGES) - 1), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    usual=st.sampled_from([JSONRPCRequest, JSONRPCResponse]),
    ended=st.booleans(),
)
def test_messages_arrive_whole_however_the_pipe_cuts_them(order: list[int], cuts: list[int], usual: Any, ended: bool):
    sent = [_MESSAGES[i] for i in order]
    data = b"\n".join(line(each) for each in sent) + (b"\n" if ended else b"")

    async def run() -> list[Any]:
        incoming, places = Incoming(usual), sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        reading = asyncio.create_task(all_of(incoming))
        for start, end in zip(places, places[1:], strict=False):
            incoming.data_received(data[start:end])
            await asyncio.sleep(0)
        incoming.connection_lost(None)
        return await reading

    assert asyncio.run(run()) == sent


def test_a_line_that_is_no_message_is_told_and_the_next_is_read():
    async def run() -> list[Any]:
        incoming = Incoming(JSONRPCResponse)
        incoming.data_received(b'garbage\n\n  \n{"jsonrpc": "1.0"}\n\xff\n' + line(_MESSAGES[0]) + b"\n")
        incoming.end()
        return await all_of(incoming)

    *told, read = asyncio.run(run())
    assert [isinstance(each, ValueError) for each in told] == [True, True, True] and read == _MESSAGES[0]


def test_receive_says_that_the_stream_is_over():
    async def run() -> None:
        incoming = Incoming(JSONRPCResponse)
        incoming.data_received(line(_MESSAGES[0]) + b"\n" + line(_MESSAGES[1]) + b"\n")
        received = await incoming.receive()
        assert isinstance(received, SessionMessage) and received.message == _MESSAGES[0]
        await incoming.aclose()  # what was not taken by then is nobody's
        with pytest.raises(anyio.EndOfStream):
            await incoming.receive()

    asyncio.run(run())


class Pipe(asyncio.WriteTransport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.written.append(b"EOF")


def test_what_is_sent_in_one_turn_leaves_in_one_write():
    async def run() -> list[bytes]:
        outgoing, pipe = Outgoing(lambda: None), Pipe()
        outgoing.connection_made(pipe)
        await asyncio.gather(*(outgoing.send(SessionMessage(each)) for each in _MESSAGES[:2]))
        await asyncio.sleep(0)
        await outgoing.send(SessionMessage(_MESSAGES[2]))
        await outgoing.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await outgoing.send(SessionMessage(_MESSAGES[2]))
        return pipe.written

    first, second, third = (line(each) + b"\n" for each in _MESSAGES[:3])
    assert asyncio.run(run()) == [first + second, third, b"EOF"]


def test_senders_wait_while_the_other_end_is_behind():
    async def run() -> None:
        outgoing, pipe = Outgoing(lambda: None), Pipe()
        outgoing.connection_made(pipe)
        outgoing.pause_writing()
        sending = asyncio.create_task(outgoing.send(SessionMessage(_MESSAGES[0])))
        await asyncio.sleep(0.01)
        assert not sending.done()
        outgoing.resume_writing()
        await sending

    asyncio.run(run())


def test_a_reader_that_goes_away_ends_both_directions():
    ended: list[str] = []

    async def run() -> None:
        outgoing = Outgoing(lambda: ended.append("incoming"))
        outgoing.connection_made(Pipe())
        outgoing.connection_lost(BrokenPipeError())
        with pytest.raises(anyio.BrokenResourceError):
            await outgoing.send(SessionMessage(_MESSAGES[0]))

    asyncio.run(run())
    assert ended == ["incoming"]


_ECHO = "import sys\nfor line in sys.stdin.buffer:\n    sys.stdout.buffer.write(line)\n    sys.stdout.buffer.flush()\n"


def run_program(source: str, env: dict[str, str] | None = None, cwd: str | None = None, send: int = 0) -> list[Any]:
    """Run a Python program, send it messages and read as many."""

    async def run() -> list[Any]:
        async with program(sys.executable, ["-c", source], env, cwd) as (incoming, outgoing):
            big = JSONRPCNotification(jsonrpc="2.0", method="x" * 200_000)
            for _ in range(send):
                await outgoing.send(SessionMessage(big))
            return [await incoming.receive() for _ in range(send)] if send else await all_of(incoming)

    before = set(os.listdir("/proc/self/fd"))
    got = asyncio.run(run())
    assert set(os.listdir("/proc/self/fd")) == before
    return got


def test_messages_larger_than_a_pipe_come_back():
    assert {len(each.message.method) for each in run_program(_ECHO, send=10)} == {200_000}


def test_a_program_gets_its_environment_and_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_THE_TRAINER", "1")
    source = (
        "import json, os\nsecret = 'SECRET_OF_THE_TRAINER' in os.environ\n"
        "print(json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': {'got': [os.environ['MINE'], os.getcwd(), secret]}}))"
    )
    (answer,) = run_program(source, {"MINE": "yes"}, str(tmp_path))
    assert answer.result == {"got": ["yes", str(tmp_path), False]}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import time; time.sleep(60)", id="does not read"),
        pytest.param("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)", id="ignores SIGTERM"),
        pytest.param("import subprocess; subprocess.run(['sleep', '60'])", id="waits for a child"),
    ],
)
def test_a_program_that_does_not_end_is_made_to(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdio, "_GRACE_SECONDS", 0.3)
    pids: list[int] = []
    popen = stdio.subprocess.Popen
    monkeypatch.setattr(stdio.subprocess, "Popen", lambda *a, **k: pids.append((made := popen(*a, **k)).pid) or made)

    async def run() -> None:
        async with program(sys.executable, ["-c", source], None, None) as (_, outgoing):
            big = JSONRPCNotification(jsonrpc="2.0", method="x" * 200_000)
            with anyio.move_on_after(0.2):  # more than the pipe holds
                await outgoing.send(SessionMessage(big))
                await outgoing.send(SessionMessage(big))

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # a killed child is reaped by init in its own time
            os.killpg(pids[0], 0)
            time.sleep(0.05)


def test_json_is_written_on_one_line():
    """The protocol's frame is the line."""
    assert b"\n" not in line(JSONRPCNotification(jsonrpc="2.0", method="a\nb")) and json.loads(line(_MESSAGES[0]))
