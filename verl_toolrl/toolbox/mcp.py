"""Tools of MCP servers, through the official SDK (`mcp` 2.x): stdio and streamable HTTP.

A server is opened with a number of sessions: over stdio each is a process of its own, so that a tool that computes
gets as many cores; a tool that does next to nothing is as fast over one. Calls go to the session with the fewest in
flight.
A session that breaks is opened again, once a call needs it and not more often than the back-off allows; the call that
found it broken is an infrastructure failure, which `limits.retries` may repeat.

What the server reports becomes an outcome: `isError` is the tool's own error, a refusal of the parameters the model's
mistake, a broken connection or an internal error infrastructure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from verl_toolrl.errors import ConfigError, InfrastructureError, ToolDefinitionError
from verl_toolrl.toolbox.limits import Limits
from verl_toolrl.toolbox.outcomes import describe
from verl_toolrl.toolbox.schema import ToolSchema
from verl_toolrl.toolbox.tool import Isolation, Tool
from verl_toolrl.trajectory import Outcome, ToolResult

__all__ = ["McpServer"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
# JSON-RPC codes: invalid params; and those of the SDK for a connection that ended or a request that timed out.
_INVALID_PARAMS = -32602
# What a command raises that cannot be run, now or later.
_NO_PROGRAM = (FileNotFoundError, NotADirectoryError, PermissionError)


class McpServer:
    """One MCP server and its pooled sessions; a source of tools for `Toolbox`.

    Args:
        command: Program that speaks MCP over stdio; each session starts one of its own.
        args: Its arguments.
        env: Further environment variables of the program.
        cwd: Its working directory.
        url: Address of a streamable-HTTP server instead of a command.
        headers: HTTP headers of every request (authorization).
        sessions: How many sessions to pool.
        start_timeout: Seconds for a session to be ready.
        timeout: Seconds for one call; becomes the limit of every tool of this server.

    Raises:
        ConfigError: If neither or both of `command` and `url` are given, the url is none, or a number makes no sense.
    """

    def __init__(
        self,
        *,
        command: str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        sessions: int = 2,
        start_timeout: float = 30.0,
        timeout: float = 30.0,
    ) -> None:
        if (command is None) == (url is None):
            raise ConfigError("mcp: wanted either command (stdio) or url (streamable HTTP)")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigError(f"mcp: url must begin with http:// or https://, found {url!r}")
        if not isinstance(sessions, int) or isinstance(sessions, bool) or sessions < 1:
            raise ConfigError(f"mcp: sessions must be a whole number >= 1, found {sessions!r}")
        if headers and url is None:
            raise ConfigError("mcp: headers belong to url")
        self.label = url or " ".join([str(command), *args])
        self._command, self._args, self._env, self._cwd = command, list(args), env, cwd
        self._url, self._headers = url, dict(headers or {})
        self._start_timeout, self._limits = start_timeout, Limits(timeout=timeout)
        self._links = [_Link(self) for _ in range(sessions)]

    async def open(self) -> list[Tool]:
        """Start all sessions and return the server's tools.

        Raises:
            ConfigError: If `mcp` is not installed, or there is no such program.
            InfrastructureError: If the server does not answer.
            ToolDefinitionError: If a tool of the server has no valid schema.
        """
        try:
            import mcp  # noqa: F401
        except ImportError as err:
            raise ConfigError("MCP servers need the official SDK: pip install 'verl-toolrl[mcp]'") from err
        outcomes = await asyncio.gather(*(link.connect() for link in self._links), return_exceptions=True)
        failed = next((each for each in outcomes if isinstance(each, BaseException)), None)
        if failed is not None:
            await self.aclose()
            what = "started" if self._command else "reached"
            kind = ConfigError if isinstance(failed.__cause__, _NO_PROGRAM) else InfrastructureError
            raise kind(
                f"MCP server {self.label!r} could not be {what}: {describe(_innermost(failed))}. "
                f"Run it by hand, or raise start_timeout ({self._start_timeout:g} s)"
            ) from failed
        try:
            return [self._tool(each) for each in await self._links[0].list_tools()]
        except BaseException as err:
            await self.aclose()
            if isinstance(err, ToolDefinitionError) or not isinstance(err, Exception):
                raise
            why = describe(_innermost(err))
            raise InfrastructureError(f"MCP server {self.label!r} does not say what tools it has: {why}") from err

    async def aclose(self) -> None:
        """End all sessions, and with them the programs of a stdio server."""
        await asyncio.gather(*(link.aclose() for link in self._links))

    def _tool(self, found: Any) -> Tool:
        name = found.name

        async def call(**arguments: Any) -> ToolResult:
            return await min(self._links, key=_Link.load).call(name, arguments)

        try:
            return Tool(
                schema=ToolSchema(name, found.description or found.title or name, dict(found.input_schema)),
                function=call,
                isolation=Isolation.INLINE,
                limits=self._limits,
                source=f"mcp {self.label}",
            )
        except ToolDefinitionError as err:
            raise ToolDefinitionError(f"MCP server {self.label!r}: {err}") from err

    async def _enter(self, stack: AsyncExitStack) -> Any:
        """Open one session on `stack` and return its client.

        A program is greeted by the handshake, once for all its calls. Since 2026 each request may say again who calls
        and what it can, which makes a call a fifth dearer at both ends; a program that knows only that is started anew
        and spoken to like that.
        """
        from mcp import Client, MCPError

        if self._url is not None:
            return await stack.enter_async_context(Client(await self._http(stack), cache=None))
        from verl_toolrl.toolbox.stdio import program

        for mode in ("legacy", "auto"):
            transport = program(str(self._command), self._args, self._env, self._cwd)
            try:
                return await stack.enter_async_context(Client(transport, cache=None, mode=mode))
            except Exception as err:
                why = _innermost(err)
                if mode == "auto" or not (isinstance(why, MCPError) and _server_spoke(why.code)):
                    raise
        raise AssertionError("unreachable")

    async def _http(self, stack: AsyncExitStack) -> Any:
        if not self._headers:
            return self._url
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        http = await stack.enter_async_context(httpx2.AsyncClient(headers=self._headers, timeout=None))
        return streamable_http_client(str(self._url), http_client=http)


class _Link:
    """One session. A task of its own holds it, because the SDK must be entered and left in the same task."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._client: Any = None
        self._holder: asyncio.Task[None] | None = None
        self._leave: asyncio.Event | None = None
        self._connecting: asyncio.Future[None] | None = None
        self._in_flight = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pause, self._not_before = _FIRST_PAUSE, 0.0

    def load(self) -> tuple[bool, int]:
        """Order in which links are chosen: connected before broken, idle before busy."""
        return self._client is None, self._in_flight

    async def connect(self) -> None:
        """Make sure that the session is there; callers that come together share one attempt."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # what an earlier loop held went with it
            self._loop, self._not_before, self._in_flight = loop, 0.0, 0
            self._client = self._connecting = self._leave = self._holder = None
        if self._client is not None:
            return
        if self._connecting is None:
            if loop.time() < self._not_before:
                raise InfrastructureError(f"MCP server {self._server.label!r} is away; next attempt soon")
            self._not_before = loop.time() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._connecting = loop.create_future()
            self._holder = loop.create_task(self._hold(self._connecting))
        try:
            await asyncio.wait_for(asyncio.shield(self._connecting), self._server._start_timeout)
        except asyncio.TimeoutError:
            await self.aclose()
            raise InfrastructureError("no answer in time") from None

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        leave = self._leave = asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                client = await self._server._enter(stack)
                self._client, self._pause = client, _FIRST_PAUSE
                if not ready.done():
                    ready.set_result(None)
                await leave.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # the SDK raises groups of whatever its tasks met
            if ready.done():
                logger.warning(f"MCP session of {self._server.label!r} ended: {describe(_innermost(exc))}")
            else:
                failure = InfrastructureError(describe(_innermost(exc)))
                failure.__cause__ = _innermost(exc)
                ready.set_exception(failure)
                ready.exception()  # seen, even where nobody waits any more
        finally:
            if not ready.done():
                ready.cancel()
            if self._leave is leave:
                self._client = self._connecting = self._leave = None

    async def list_tools(self) -> list[Any]:
        """Return all tools of the server, page by page."""
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found.extend(page.tools)
            cursor = page.next_cursor
            if not cursor:
                return found

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool and sort its answer."""
        self._in_flight += 1
        try:
            await self.connect()
            client = self._client
            if client is None:
                raise InfrastructureError("the session ended")
            return _result(await client.call_tool(name, arguments))
        except InfrastructureError:
            raise
        except Exception as err:
            return self._failed(err)
        finally:
            self._in_flight -= 1

    def _failed(self, err: Exception) -> ToolResult:
        """Say whose doing it was that a call raised."""
        from mcp import MCPError
        from pydantic import ValidationError

        if isinstance(err, MCPError):
            if err.code == _INVALID_PARAMS:
                return ToolResult(Outcome.MODEL_ERROR, err.message, error=err.message)
            if not _server_spoke(err.code):
                self._break()
            raise InfrastructureError(f"MCP error {err.code}: {err.message}") from err
        if isinstance(err, ValidationError):
            raise InfrastructureError(f"the MCP server answered garbage: {str(err).splitlines()[0]}") from err
        # Closed and broken streams, HTTP errors: the session is gone.
        self._break()
        raise InfrastructureError(f"MCP session broke: {describe(_innermost(err))}") from err

    def _break(self) -> None:
        """Let the session go; the next call opens another."""
        self._client = self._connecting = None
        if self._leave is not None:
            self._leave.set()
            self._leave = None

    async def aclose(self) -> None:
        """End the session and wait until its task is over."""
        holder, self._holder = self._holder, None
        connected = self._client is not None
        self._break()
        if holder is None:
            return
        if not connected:
            holder.cancel()
        _, pending = await asyncio.wait({holder}, timeout=15.0)
        for task in pending:
            task.cancel()
            await asyncio.wait({task}, timeout=5.0)
        self._not_before, self._pause = 0.0, _FIRST_PAUSE


def _server_spoke(code: int) -> bool:
    """Whether an error came from the server in good health, rather than from a connection that ended."""
    from mcp import types

    return code != getattr(types, "CONNECTION_CLOSED", -32000)


def _result(answer: Any) -> ToolResult:
    text = "\n".join(_text(block) for block in answer.content)
    if answer.is_error:
        return ToolResult(Outcome.TOOL_ERROR, text or "the tool failed", error=text or "the tool failed")
    if not answer.content and answer.structured_content is not None:
        import orjson

        text = orjson.dumps(answer.structured_content).decode()
    return ToolResult(
        Outcome.OK, text, value=answer.structured_content if answer.structured_content is not None else text
    )


def _text(block: Any) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource":
        return getattr(block.resource, "text", None) or f"[resource {block.resource.uri}]"
    if block.type == "resource_link":
        return f"[resource {block.uri}]"
    return f"[{block.type} {getattr(block, 'mime_type', '')}, not shown]"


def _innermost(exc: BaseException) -> BaseException:
    """Return the first real exception of nested groups."""
    while getattr(exc, "exceptions", None):
        exc = exc.exceptions[0]  # type: ignore[attr-defined]
    return exc
