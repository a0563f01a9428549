"""Worker processes for tools of isolation `process`: killed on time-out, limited in memory, replaced when they die.

A worker is a fresh interpreter (`worker_main`), not a fork: forking a process that holds engine threads and a GPU is
how training runs hang. Parent and worker exchange JSON frames over a socket pair, so nothing that a tool returns is
unpickled in the trainer. A worker runs one call at a time and dies with its parent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from verl_toolrl.errors import InfrastructureError, ToolDefinitionError

__all__ = ["Worker", "Workers", "target_of"]

_HEADER = struct.Struct(">I")
_MAX_FRAME = 64 << 20
_START_SECONDS = 60.0

inside_worker = False
"""True in a worker process, which must not start workers of its own."""


def target_of(function: Callable[..., Any], where: str) -> dict[str, str]:
    """Return how a fresh interpreter finds `function`: module, file and qualified name.

    Raises:
        ToolDefinitionError: If it is defined inside another function or in a session without a file.
    """
    function = getattr(function, "function", function)
    if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
        raise ToolDefinitionError(
            f"{where}: isolation 'process' needs a function at the top level of a module, found {function.__qualname__}"
        )
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None) or ""
    if function.__module__ == "__main__" and not file:
        raise ToolDefinitionError(f"{where}: isolation 'process' needs a module on disk; this one was typed in a shell")
    return {"module": function.__module__, "file": os.path.abspath(file) if file else "", "name": function.__qualname__}


class Worker:
    """One process. `call` is never used by two callers at once."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process, self._sock = process, sock
        self.dead = False

    @classmethod
    async def start(cls, memory_mb: int | None) -> Worker:
        """Start a worker and wait until it reports.

        Raises:
            InfrastructureError: If it does not.
        """
        if inside_worker:
            raise InfrastructureError(
                "a worker process was about to start workers: the tool's module runs a toolbox when it is imported; "
                'put that under `if __name__ == "__main__":`'
            )
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = subprocess.Popen(
                [sys.executable, "-m", "verl_toolrl.toolbox.worker_main", str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as err:
            ours.close()
            raise InfrastructureError(f"cannot start a worker process: {err}") from err
        finally:
            theirs.close()
        worker = cls(process, ours)
        hello = {"path": sys.path, "memory_mb": memory_mb}
        timer = asyncio.get_running_loop().call_later(_START_SECONDS, worker.kill)
        try:
            await worker.call(hello)
        except BaseException:
            worker.kill()
            await worker.reap()
            raise
        finally:
            timer.cancel()
        return worker

    async def call(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            InfrastructureError: If the process died or answered garbage; it is dead afterwards.
        """
        loop = asyncio.get_running_loop()
        try:
            body = orjson.dumps(message)
            await loop.sock_sendall(self._sock, _HEADER.pack(len(body)) + body)
            size = _HEADER.unpack(await self._read(loop, _HEADER.size))[0]
            if size > _MAX_FRAME:
                raise InfrastructureError("the worker process answered garbage")
            answer = orjson.loads(await self._read(loop, size))
            if not isinstance(answer, dict):
                raise InfrastructureError("the worker process answered garbage")
            return answer
        except (OSError, ValueError, EOFError) as err:
            self.kill()
            raise InfrastructureError(f"the worker process died ({self._exit_text()})") from err
        except BaseException:  # cancelled in mid-frame: the stream is out of step
            self.kill()
            raise

    async def _read(self, loop: asyncio.AbstractEventLoop, size: int) -> bytes:
        chunks = bytearray()
        while len(chunks) < size:
            chunk = await loop.sock_recv(self._sock, min(size - len(chunks), 1 << 20))
            if not chunk:
                raise EOFError
            chunks += chunk
        return bytes(chunks)

    def _exit_text(self) -> str:
        try:
            code = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return "connection lost"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process and everything that it started; safe to call twice."""
        self.dead = True
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()

    async def reap(self) -> None:
        """Wait, after `kill`, until the process is gone, for at most five seconds; then let go of the socket.

        Not earlier: the event loop may still be listening on it.
        """
        self._sock.close()
        for _ in range(500):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.01)


class Workers:
    """The workers of one tool.

    Args:
        keep: Idle workers that are kept for later calls.
        memory_mb: Address space of each; a worker that holds more than half of it after a call is replaced.
    """

    def __init__(self, keep: int, memory_mb: int | None) -> None:
        self._keep, self._memory_mb = keep, memory_mb
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._reaping: set[asyncio.Task[None]] = set()

    async def take(self) -> Worker:
        """Return an idle worker, or start one."""
        while self._idle:
            worker = self._idle.pop()
            if not worker.dead:
                return worker
            self.drop(worker)
        worker = await Worker.start(self._memory_mb)
        self._all.add(worker)
        return worker

    def put(self, worker: Worker, rss_mb: float = 0.0) -> None:
        """Give a worker back after a call that ended well."""
        swollen = self._memory_mb is not None and rss_mb > self._memory_mb / 2
        if worker.dead or swollen or len(self._idle) >= self._keep:
            self.drop(worker)
        else:
            self._idle.append(worker)

    def drop(self, worker: Worker) -> None:
        """Kill a worker and see to it that it is waited for."""
        worker.kill()
        self._all.discard(worker)
        task = asyncio.get_running_loop().create_task(worker.reap())
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    def kill_all(self) -> None:
        """Kill all workers without waiting, where no event loop is left to wait on."""
        for worker in self._all:
            worker.kill()
        self._all.clear()
        self._idle.clear()

    async def aclose(self) -> None:
        """Kill all workers and wait until they are gone."""
        for worker in list(self._all):
            self.drop(worker)
        self._idle.clear()
        if self._reaping:
            await asyncio.wait(set(self._reaping))
