"""Messages of MCP through pipes, for both ends of a stdio connection.

The SDK's stdio transports move a message through two tasks and two in-memory streams, the server's also through a
thread for each read and write. Here the event loop waits for the pipe itself, a line is parsed where it is taken and a
message serialised where it is sent. What is sent in one turn of the loop leaves in one write, because waking the other
process is the dearest part of a small message. The streams are what the SDK asks of a transport (`ReadStream`,
`WriteStream`); parsing and serialising are the SDK's own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

__all__ = ["Incoming", "Outgoing", "are_pipes", "own_pipes", "program"]

_FLUSH_SECONDS = 1.0
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.01


class Incoming(asyncio.Protocol):
    """Messages of a pipe until its end; a line that is no message arrives as the `ValueError` that says so.

    Args:
        usual: What nearly every message is. Trying that alone first costs half of trying all four kinds.
    """

    def __init__(self, usual: type[JSONRPCRequest | JSONRPCResponse]) -> None:
        self.closed = asyncio.Event()
        self._usual = usual
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []
        self._ended = False
        self._waiting: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Cut what was read into lines; the last piece waits for the rest of its line."""
        if self._ended:
            return
        first, *others = data.split(b"\n")
        self._begun.append(first)
        if others:
            self._lines.append(b"".join(self._begun))
            self._begun = [others.pop()]
            self._lines.extend(others)
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed; what stands in it without a line's end is a line too."""
        if not self._ended and any(self._begun):
            self._lines.append(b"".join(self._begun))
        self.end()
        self.closed.set()

    def end(self) -> None:
        """Let nothing in any more; what has arrived is still to be had."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while True:
            while not self._lines:
                if self._ended:
                    raise StopAsyncIteration
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
            line = self._lines.popleft()
            try:
                return SessionMessage(self._usual.model_validate_json(line, by_name=False))
            except ValueError:
                pass
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError as err:
                if line.strip():
                    return err

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def aclose(self) -> None:
        """Read no more. The pipe itself is emptied on, so that a program that ends can say its last words."""
        self._lines.clear()
        self.end()

    async def __aenter__(self) -> Incoming:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Outgoing(asyncio.BaseProtocol):
    """Messages into a pipe. `send` waits only where the other end is far behind."""

    def __init__(self, broken: Any) -> None:
        self.closed = asyncio.Event()
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._batch: list[bytes] = []
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False

    def connection_made(self, transport: Any) -> None:
        """Keep the pipe."""
        self._pipe: asyncio.WriteTransport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed, here or at the other end."""
        self.closed.set()
        self._room.set()
        self._broken()

    def pause_writing(self) -> None:
        """Make senders wait."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._room.set()

    async def send(self, item: SessionMessage) -> None:
        """Write a message at the end of this turn of the event loop.

        Raises:
            anyio.ClosedResourceError: After `aclose`.
            anyio.BrokenResourceError: If nobody reads at the other end any more.
        """
        if self._closing:
            raise anyio.ClosedResourceError
        if self.closed.is_set():
            raise anyio.BrokenResourceError
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode())
        if not self._room.is_set():
            await self._room.wait()

    def _flush(self) -> None:
        if self._batch and not self._pipe.is_closing():
            self._pipe.write(b"\n".join(self._batch) + b"\n")
        self._batch.clear()

    async def aclose(self) -> None:
        """Write what is left and then the end of the stream."""
        self._closing = True
        self._flush()
        if not self.closed.is_set():
            self._pipe.close()

    async def __aenter__(self) -> Outgoing:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


@asynccontextmanager
async def _streams(
    source: Any, target: Any, usual: type[JSONRPCRequest | JSONRPCResponse]
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Make streams of two files that are pipes; they are closed at the end."""
    loop = asyncio.get_running_loop()
    reading, incoming = await loop.connect_read_pipe(lambda: Incoming(usual), source)
    writing, outgoing = await loop.connect_write_pipe(lambda: Outgoing(incoming.end), target)
    try:
        yield incoming, outgoing
    finally:
        with anyio.CancelScope(shield=True):
            await outgoing.aclose()
            with anyio.move_on_after(_FLUSH_SECONDS):
                await outgoing.closed.wait()
            if not outgoing.closed.is_set():
                writing.abort()
            if not incoming.closed.is_set():
                reading.close()
            await incoming.closed.wait()
            await outgoing.closed.wait()


@asynccontextmanager
async def program(
    command: str, args: Sequence[str], env: Mapping[str, str] | None, cwd: str | None
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Run a program that speaks MCP; a transport for the SDK's `Client`.

    At the end its input is closed. Where it then does not end by itself, its process group is terminated and, in the
    end, killed, as the protocol's lifecycle has it.

    Raises:
        OSError: If it cannot be started.
    """
    process = subprocess.Popen(
        [command, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**get_default_environment(), **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with _streams(process.stdout, process.stdin, JSONRPCResponse) as (incoming, outgoing):
            try:
                yield incoming, outgoing
            finally:
                with anyio.CancelScope(shield=True):
                    await incoming.aclose()
                    await outgoing.aclose()
                    await _ended(process)
    finally:
        if process.poll() is None:  # cancelled while it was waited for
            _signal(process, signal.SIGKILL)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process is gone, and help where that takes long."""
    loop = asyncio.get_running_loop()
    for harder in (signal.SIGTERM, signal.SIGKILL, None):
        until = loop.time() + _GRACE_SECONDS
        while process.poll() is None and loop.time() < until:
            await asyncio.sleep(_POLL_SECONDS)
        if process.returncode is not None or harder is None:
            return
        _signal(process, harder)


def _signal(process: subprocess.Popen[bytes], which: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, which)


def are_pipes() -> bool:
    """Say whether standard input and output are pipes or sockets; a terminal or a file is left to the SDK."""
    try:
        modes = [os.fstat(fd).st_mode for fd in (0, 1)]
    except OSError:
        return False
    return all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in modes)


@asynccontextmanager
async def own_pipes() -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Take standard input and output over; until the end, what is read or printed elsewhere meets nothing and standard
    error.

    A tool that prints would otherwise write into the protocol.
    """
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        source, target = os.fdopen(os.dup(ends[0]), "rb", 0), os.fdopen(os.dup(ends[1]), "wb", 0)
        async with _streams(source, target, JSONRPCRequest) as streams:
            yield streams
    finally:
        sys.stdout.flush()  # what a tool printed goes where the rest of it went
        for fd, end in enumerate(ends):
            os.set_blocking(end, True)
            os.dup2(end, fd)
            os.close(end)
