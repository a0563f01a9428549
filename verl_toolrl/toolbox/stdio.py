"""Standard input and output as lines, without a thread for each read and write.

The SDK's stdio transport moves every read, write and flush to a worker thread. Where both ends are pipes, as they are
when a client starts the server, the event loop can wait for them itself, which saves about a third of a call's time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Lines", "Sink", "are_pipes", "pipe_streams"]

_LONGEST_LINE = 2**28


class Lines:
    """Lines of a pipe, as bytes, until its end."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> bytes:
        line = await self._reader.readline()
        if not line:
            raise StopAsyncIteration
        return line


class Sink:
    """The writing end of a pipe, with the two methods that the SDK calls."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, text: str) -> None:
        self._writer.write(text.encode())

    async def flush(self) -> None:
        await self._writer.drain()


def are_pipes() -> bool:
    """Say whether standard input and output are pipes or sockets; a terminal or a file is left to the SDK."""
    try:
        modes = [os.fstat(fd).st_mode for fd in (0, 1)]
    except OSError:
        return False
    return all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in modes)


@asynccontextmanager
async def pipe_streams() -> AsyncIterator[tuple[Lines, Sink]]:
    """Take the two pipes over; until the end, what is read or printed elsewhere meets nothing and standard error.

    A tool that prints would otherwise write into the protocol.
    """
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        source, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ends[0]), "rb", 0)
        )
        target, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(ends[1]), "wb", 0)
        )
        try:
            yield Lines(reader), Sink(asyncio.StreamWriter(target, protocol, None, loop))
        finally:
            source.close()
            target.close()
    finally:
        sys.stdout.flush()  # what a tool printed goes where the rest of it went
        for fd, end in enumerate(ends):
            os.set_blocking(end, True)
            os.dup2(end, fd)
            os.close(end)
