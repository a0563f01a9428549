"""Offer a toolbox over MCP, so that any agent, editor or other trainer can call its tools.

Over stdio one connection is one trajectory. Over streamable HTTP a trajectory is one MCP session, or whatever the
client names in the header `x-trajectory-id`; calls that name neither (the sessionless protocol of 2026) share nothing
and get a state of their own each.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.toolbox.box import Toolbox
from verl_toolrl.toolbox.session import Session
from verl_toolrl.trajectory import Outcome, ToolCall

__all__ = ["serve_http", "serve_stdio"]

_HEADERS = ("x-trajectory-id", "mcp-session-id")
_MAX_SESSIONS = 1024


class _Sessions:
    """Sessions by trajectory; the one unused longest makes room."""

    def __init__(self, box: Toolbox) -> None:
        self._box = box
        self._open: OrderedDict[str, Session] = OrderedDict()

    async def get(self, trajectory: str) -> Session:
        session = self._open.get(trajectory)
        if session is None:
            session = self._open[trajectory] = await self._box.session(trajectory).__aenter__()
        self._open.move_to_end(trajectory)
        while len(self._open) > _MAX_SESSIONS:
            _, oldest = self._open.popitem(last=False)
            await oldest.aclose()
        return session


def _server(box: Toolbox, *, one_trajectory: bool) -> Any:
    try:
        from mcp import types
        from mcp.server import Server
    except ImportError as err:
        raise ConfigError("serving needs the official SDK: pip install 'verl-toolrl[mcp]'") from err
    sessions = _Sessions(box)

    async def list_tools(context: Any, params: Any) -> Any:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name, description=tool.schema.description, input_schema=dict(tool.schema.parameters)
                )
                for tool in box.tools.values()
            ]
        )

    async def call_tool(context: Any, params: Any) -> Any:
        call = ToolCall(params.name, params.arguments or {})
        trajectory = "stdio" if one_trajectory else _trajectory(context)
        if trajectory is None:
            async with box.session() as session:
                result = await session.call(call)
        else:
            result = await (await sessions.get(trajectory)).call(call)
        structured = result.value if isinstance(result.value, dict) and not result.truncated else None
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=result.content)],
            structured_content=structured,
            is_error=result.outcome is not Outcome.OK,
        )

    def schema(name: str) -> Any:
        tool = box.tools.get(name)
        return None if tool is None else tool.schema.parameters

    return Server(box.name, on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=schema)


def _trajectory(context: Any) -> str | None:
    headers = getattr(context.request, "headers", None) or {}
    return next((headers[key] for key in _HEADERS if headers.get(key)), None)


async def serve_stdio(box: Toolbox) -> None:
    """Serve on standard input and output until the client closes them."""
    server = _server(box, one_trajectory=True)
    from mcp import stdio_server

    from verl_toolrl.toolbox.stdio import are_pipes, own_pipes

    async with box, own_pipes() if are_pipes() else stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


async def serve_http(box: Toolbox, host: str, port: int) -> None:
    """Serve streamable HTTP at `http://host:port/mcp` until cancelled or interrupted."""
    server = _server(box, one_trajectory=False)
    import uvicorn

    app = server.streamable_http_app(host=host)
    web = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
    async with box:
        await web.serve()
