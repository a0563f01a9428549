"""Tools across the border to verl: its tools in our toolbox, ours in its own agent loop.

Taken in, in a tool set:

    - use: verl_toolrl.integrations.verl_tools:verl_tools
      config: {tool_config_path: verl_tools.yaml, function_tool_path: my_function_tools.py}

A `BaseTool` lives as long as its trajectory here, as its docstring says: `create` before the first call, with the
trajectory's `create_kwargs`; `execute` for each call; `release` at the end. (verl's loop does all three for each call.)
Of an answer the text is kept, and reward and metrics are in `ToolResult.value`; images and videos are not shown.

Handed out, in verl's own `tool_config_path` file (`as_verl_config` writes it):

    tools:
      - class_name: verl_toolrl.integrations.verl_tools.VerlTool
        config: {type: native, toolset: quickstart, name: calculate}

verl's loop then gets our validation, limits and whole schemas. The state of a trajectory lives with verl's `AgentData`.

Facts relied on (verl 0.9.1): tools/base_tool.py (BaseTool's methods), tools/function_tool.py (FunctionTool,
normalize_function_tool_return), tools/tool_registry.py (load_all_tools, `type: native`), and that ToolAgentLoop reads
schemas through `tool_schema.model_dump(exclude_unset=True, exclude_none=True)` and passes `agent_data=` to `execute`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl.tools.base_tool import BaseTool
from verl.tools.function_tool import FunctionTool, normalize_function_tool_return
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from verl.tools.tool_registry import load_all_tools

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.toolbox import Isolation, Limits, StateSpec, Tool, Toolbox, ToolContext, ToolSchema
from verl_toolrl.toolbox.session import Session
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

__all__ = ["VerlTool", "as_verl_config", "as_verl_tools", "from_verl", "verl_tools"]

logger = logging.getLogger(__name__)


def verl_tools(tool_config_path: str | None = None, function_tool_path: str | None = None) -> list[Tool]:
    """Load verl's tools from the two files that its config names, and take them in.

    Raises:
        ConfigError: If neither file is given, one does not exist, or verl cannot load it.
    """
    if tool_config_path is None and function_tool_path is None:
        raise ConfigError("verl_tools: give tool_config_path, function_tool_path or both")
    for path in (tool_config_path, function_tool_path):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"verl_tools: no such file: {path}")
    try:
        loaded = load_all_tools(tool_config_path, function_tool_path)
    except Exception as err:  # verl raises whatever its parts do
        raise ConfigError(f"verl_tools: verl cannot load them: {type(err).__name__}: {err}") from err
    return [from_verl(each) for each in loaded]


def from_verl(verl_tool: BaseTool | FunctionTool, *, limits: Limits | None = None) -> Tool:
    """Take one of verl's tools in, unchanged.

    Args:
        verl_tool: An instance of a `BaseTool` class, or what `@function_tool` registered.
        limits: Limits of the new tool.

    Raises:
        ToolDefinitionError: If its schema is invalid.
    """
    schema = ToolSchema.from_dict(verl_tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True))
    if isinstance(verl_tool, FunctionTool):

        async def call_function(**arguments: Any) -> Any:
            return _answer(*normalize_function_tool_return(await verl_tool.call(arguments)))

        return Tool(schema, call_function, Isolation.INLINE, limits or Limits(), source="verl @function_tool")

    async def call_class(instance: _Instance, context: ToolContext, **arguments: Any) -> Any:
        return await instance.execute(context, arguments)

    return Tool(
        schema,
        call_class,
        Isolation.INLINE,
        limits or Limits(),
        state=StateSpec(schema.name, functools.partial(_Instance, verl_tool)),
        wants_context="context",
        source=f"verl {type(verl_tool).__module__}.{type(verl_tool).__qualname__}",
    )


class _Instance:
    """What `create` of a `BaseTool` made for one trajectory. Keywords of the session are `create_kwargs`."""

    def __init__(self, verl_tool: BaseTool, **create_kwargs: Any) -> None:
        self._tool, self._create_kwargs = verl_tool, create_kwargs
        self._id: str | None = None

    async def execute(self, context: ToolContext, arguments: dict[str, Any]) -> Any:
        if self._id is None:
            self._id, _ = await self._tool.create(create_kwargs=self._create_kwargs)
        # The trajectory's data, where the rollout has some to give, as verl's loop passes it.
        more = {"agent_data": context.extra["agent_data"]} if "agent_data" in context.extra else {}
        return _answer(*await self._tool.execute(self._id, arguments, **more))

    async def close(self) -> None:
        if self._id is not None:
            await self._tool.release(self._id)


def _answer(response: Any, reward: float | None = None, metrics: Mapping[str, Any] | None = None) -> Any:
    text = response.text or ""
    for kind in ("image", "video"):
        if getattr(response, kind, None):
            text = f"{text}\n[{len(getattr(response, kind))} {kind}(s), not shown]".lstrip("\n")
    value = {"text": response.text, "reward": reward, "metrics": dict(metrics or {})}
    return ToolResult(Outcome.OK, text, value=value)


class _WholeSchema(OpenAIFunctionToolSchema):
    """verl's schema class, which dumps the schema as the author wrote it instead of the part that verl models."""

    _whole: dict[str, Any] = {}

    @classmethod
    def of(cls, schema: ToolSchema) -> _WholeSchema:
        whole = schema.to_dict()
        made = cls.model_validate(
            {
                "type": "function",
                "function": {
                    "name": schema.name,
                    "description": schema.description,
                    # What verl's own classes can hold; only `name` is ever read from it.
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        )
        made._whole = whole
        return made

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the whole schema."""
        return copy.deepcopy(self._whole)


class VerlTool(BaseTool):
    """One of our tools as a `BaseTool` of verl.

    Args:
        config: From the YAML: `toolset` (as for `Toolbox.load`) and `name`. Entries with the same tool set share one
            toolbox in a process, and so limits, counts and, in one trajectory, state.
        tool_schema: Ignored; the tool's own schema is used, whole.
        box: A toolbox instead of `toolset`.

    Raises:
        ConfigError: If the tool set does not exist or has no such tool.
    """

    def __init__(self, config: dict[str, Any], tool_schema: Any = None, *, box: Toolbox | None = None) -> None:
        name = config.get("name")
        if box is None and "toolset" not in config:
            raise ConfigError(
                "VerlTool: config needs toolset and name, such as {type: native, toolset: quickstart, ...}"
            )
        self._box = box or _shared_box(str(config["toolset"]))
        if name not in self._box.tools:
            raise UnknownNameError("tool", name, self._box.tools)
        # Not through super().__init__, which prints every schema.
        self.config, self.name = config, str(name)
        self.tool_schema = _WholeSchema.of(self._box.tools[self.name].schema)

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict]:
        """Answer one call in the trajectory of `agent_data`, or in one of its own where verl gives none.

        Returns:
            The text, reward 0.0 (credit is not the tool's to give), and the outcome for verl's metrics.
        """
        agent_data = kwargs.get("agent_data")
        call = ToolCall(self.name, parameters)
        if agent_data is None:
            async with self._box.session(instance_id) as session:
                result = await session.call(call)
        else:
            result = await (await _session_of(self._box, agent_data)).call(call)
        return ToolResponse(text=result.content), 0.0, {"outcome": result.outcome.value, "seconds": result.seconds}


@functools.cache
def _shared_box(toolset: str) -> Toolbox:
    return Toolbox.load(toolset)


_sessions: weakref.WeakKeyDictionary[Any, dict[int, asyncio.Future[Session]]] = weakref.WeakKeyDictionary()


async def _session_of(box: Toolbox, agent_data: Any) -> Session:
    """Return the session of a trajectory; it is released when verl lets its `AgentData` go."""
    sessions = _sessions.setdefault(agent_data, {})
    if id(box) not in sessions:
        loop = asyncio.get_running_loop()
        kwargs = getattr(agent_data, "tools_kwargs", None) or {}
        state = {key: (each or {}).get("create_kwargs") or {} for key, each in kwargs.items() if key in box.states}
        name = str(getattr(agent_data, "request_id", ""))
        opening = sessions[id(box)] = loop.create_task(_opened(box, name, state))
        weakref.finalize(agent_data, _release, loop, opening)
    # Shielded: the tools of one step share the opening, and one that is cancelled must not cancel it for the others.
    return await asyncio.shield(sessions[id(box)])


async def _opened(box: Toolbox, name: str, state: Mapping[str, Mapping[str, Any]]) -> Session:
    return await box.session(name, state=state).__aenter__()


def _release(loop: asyncio.AbstractEventLoop, opening: asyncio.Future[Session]) -> None:
    if loop.is_closed() or not opening.done() or opening.cancelled() or opening.exception() is not None:
        return
    loop.call_soon_threadsafe(_close, opening.result())


_closing: set[asyncio.Task[None]] = set()


def _close(session: Session) -> None:
    task = asyncio.get_running_loop().create_task(session.aclose())
    _closing.add(task)  # the loop itself keeps only a weak reference
    task.add_done_callback(_closing.discard)


def as_verl_tools(box: Toolbox) -> list[BaseTool]:
    """Return every tool of a toolbox as a `BaseTool`."""
    return [VerlTool({"type": "native", "name": name}, box=box) for name in box.tools]


def as_verl_config(toolset: str) -> dict[str, Any]:
    """Return the content of a `tool_config_path` file that offers a tool set to verl's own loop."""
    where = f"{VerlTool.__module__}.{VerlTool.__qualname__}"
    names = Toolbox.load(toolset).tools
    return {
        "tools": [
            {"class_name": where, "config": {"type": "native", "toolset": toolset, "name": name}} for name in names
        ]
    }
