"""The toolbox: tools under their limits, ready to be called by many trajectories at once.

    toolbox = Toolbox([calculate, Inventory])        # or Toolbox.load("quickstart"), Toolbox.load("my_tools.yaml")
    async with toolbox:
        async with toolbox.session("t-1") as session:
            results = await session.call_all(calls)

A toolbox is defined anywhere and opened on one event loop: by `async with`, or by its first session. Opening starts
what the tools need (MCP servers, a check that the sandbox can run) and raises where that fails. One toolbox serves all
trajectories of a process, so that limits and counts hold over all of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from verl_toolrl.errors import ConfigError, InfrastructureError, ToolDefinitionError, UnknownNameError
from verl_toolrl.toolbox.flight import Line, Runtime
from verl_toolrl.toolbox.limits import Budget
from verl_toolrl.toolbox.output import Cutter, Tokenizer
from verl_toolrl.toolbox.recording import Recording
from verl_toolrl.toolbox.session import Session
from verl_toolrl.toolbox.threads import Threads
from verl_toolrl.toolbox.tool import StatefulTool, StateSpec, Tool, tool
from verl_toolrl.toolbox.watchdog import Watchdog
from verl_toolrl.trajectory import Outcome

__all__ = ["ToolSource", "Toolbox"]

logger = logging.getLogger(__name__)


@tool(name="unknown", isolation="inline")
def _unknown() -> None:
    """Stand for every name that no tool has, in the counts."""


class ToolSource(Protocol):
    """Where tools come from that are known only once something runs: an MCP server."""

    async def open(self) -> Sequence[Tool]:
        """Start what is needed and return the tools.

        Raises:
            ConfigError: If it can never be started.
            InfrastructureError: If a server cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Stop it, leaving nothing behind."""
        ...


class Toolbox:
    """A set of tools.

    Args:
        tools: Tools, `StatefulTool` classes and sources, in the order in which the model reads them.
        budget: Budget of a trajectory whose session names none.
        tokenizer: Of the model that reads the answers, for limits in tokens (see `output.Cutter`).
        recording: Where answers are written down or read from.
        threads: Threads at most for tools of isolation `thread`.
        watchdog: Seconds after which a blocked event loop is reported; None for no watchdog.
        name: For display.

    Raises:
        ToolDefinitionError: If two tools have one name, or two classes one state name.
    """

    def __init__(
        self,
        tools: Iterable[Tool | type[StatefulTool] | ToolSource],
        *,
        budget: Budget | None = None,
        tokenizer: Tokenizer | None = None,
        recording: Recording | None = None,
        threads: int = 512,
        watchdog: float | None = 0.5,
        name: str = "toolbox",
    ) -> None:
        self.name, self.budget, self.recording = name, budget or Budget(), recording
        self._fixed: list[Tool] = []
        self._sources: list[ToolSource] = []
        for each in tools:
            if isinstance(each, Tool):
                self._fixed.append(each)
            elif isinstance(each, type) and issubclass(each, StatefulTool):
                self._fixed.extend(each.tools())
            elif callable(getattr(each, "open", None)) and callable(getattr(each, "aclose", None)):
                self._sources.append(each)
            elif inspect.isfunction(each):
                self._fixed.append(tool(each))
            else:
                raise ToolDefinitionError(
                    f"{name}: {each!r} is no tool; wanted a @tool function or a StatefulTool class"
                )
        self._cutter = Cutter(tokenizer)
        self._threads_size, self._watchdog_seconds = threads, watchdog
        self.lines: dict[str, Line] = {}
        self.states: dict[str, StateSpec] = {}
        self.sessions: set[Session] = set()
        self.faults: Counter[str] = Counter()
        """Failures beside calls: a state that could not be closed."""
        self.unknown = Line(_unknown)
        self._runtime: Runtime | None = None
        self._watchdog: Watchdog | None = None
        self._opening: asyncio.Lock | None = None
        self._failure: InfrastructureError | None = None
        self._take(self._fixed)

    @classmethod
    def load(cls, where: str | Path, **options: Any) -> Toolbox:
        """Build the toolbox of a tool set: a YAML file, the name of a ready-made one, or a module path.

        Args:
            where: `my_tools.yaml`, `quickstart`, `my_package.tools` or `my_package.tools:my_tool`.
            **options: Keywords of `Toolbox` that replace what the tool set says.

        Raises:
            ToolRLError: If it names what does not exist, or a tool is wrong; the text says where.
        """
        from verl_toolrl.toolbox.toolset import load_toolset

        return load_toolset(where, **options)

    def _take(self, tools: Iterable[Tool]) -> None:
        """Make `tools`, and no others, the tools of this box."""
        lines: dict[str, Line] = {}
        states: dict[str, StateSpec] = {}
        for each in tools:
            if each.name in lines:
                sources = f"{lines[each.name].tool.source or '?'} and {each.source or '?'}"
                raise ToolDefinitionError(f"{self.name}: two tools are named {each.name!r}, from {sources}; rename one")
            first = list(inspect.signature(each.function).parameters)[:1]
            if each.state is None and first == ["self"]:
                raise ToolDefinitionError(
                    f"{each} is a method; its class must derive from StatefulTool and be given whole"
                )
            if each.state is not None:
                known = states.setdefault(each.state.name, each.state)
                if known is not each.state and known != each.state:
                    raise ToolDefinitionError(
                        f"{self.name}: two states are named {each.state.name!r}; give one of them another `name`"
                    )
            old = self.lines.get(each.name)
            lines[each.name] = old if old is not None and old.tool is each else Line(each)
        self.lines, self.states = lines, states

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Tools by name. Those of sources are there once the toolbox is open."""
        return {name: line.tool for name, line in self.lines.items()}

    @property
    def has_sources(self) -> bool:
        """Whether some tools are known only once the toolbox is open."""
        return bool(self._sources)

    def schemas(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return what the model reads, in OpenAI form, of all tools or of those named.

        Raises:
            UnknownNameError: If a name is not in the toolbox.
            ConfigError: If tools come from a source and the toolbox was never opened.
        """
        if self._sources and self._runtime is None and len(self.lines) == len(self._fixed):
            raise ConfigError(
                f"{self.name}: tools come from a server; open the toolbox before asking for their schemas"
            )
        for name in names or ():
            if name not in self.lines:
                raise UnknownNameError("tool", name, self.lines)
        return [self.lines[name].tool.schema.to_dict() for name in (self.lines if names is None else names)]

    def session(
        self,
        trajectory_id: str = "",
        *,
        state: Mapping[str, Mapping[str, Any]] | None = None,
        budget: Budget | None = None,
        tools: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Session:
        """Return the tools for one trajectory; enter it with `async with`.

        Args:
            trajectory_id: For logs and tools that ask for it.
            state: Keywords for the constructor of each state, by state name (the class name by default).
            budget: Instead of the toolbox's own.
            tools: Names of the tools that this trajectory has, in order; None for all.
            extra: Anything that tools with a `ToolContext` may read.

        Raises (on entering):
            ConfigError: If a tool or state is unknown, or a keyword does not exist.
            ToolRLError: If opening the toolbox fails, see `open`.
        """
        return Session(
            self, trajectory_id, state=state or {}, budget=budget or self.budget, names=tools, extra=extra or {}
        )

    async def open(self) -> Runtime:
        """Start what the tools need; does nothing where that was done. `async with toolbox` calls it.

        Raises:
            ConfigError: If the machine gives no means to run a tool, or the toolbox is open on another event loop.
            InfrastructureError: If a server cannot be reached; the next call tries again.
        """
        runtime, loop = self._runtime, asyncio.get_running_loop()
        if runtime is not None and runtime.loop is loop:
            return runtime
        if runtime is not None and not runtime.loop.is_closed():
            raise ConfigError(f"{self.name}: open on another event loop; make one toolbox a loop")
        if runtime is not None:  # its loop ended without aclose: threads and processes are let go, tasks are gone
            self._forget()
        if self._opening is None:
            self._opening = asyncio.Lock()
        known = self._failure
        async with self._opening:
            if self._runtime is None and self._failure is not known:
                # Of the attempt that this call has waited for; a hundred sessions would else wait a hundred times.
                raise InfrastructureError(str(self._failure)) from self._failure
            if self._runtime is None:
                await self._open()
            assert self._runtime is not None
            return self._runtime

    async def _open(self) -> None:
        opened: list[ToolSource] = []
        try:
            found = list(self._fixed)
            for source in self._sources:
                opened.append(source)
                found.extend(await source.open())
            self._take(found)
            await _call_each(line.tool.startup for line in self.lines.values())
        except BaseException as err:
            for source in opened:
                await source.aclose()
            if isinstance(err, InfrastructureError):
                self._failure = err
            raise
        self._runtime = Runtime(self._cutter, Threads(self._threads_size))
        if self._watchdog_seconds is not None:
            self._watchdog = Watchdog(self._runtime, self._watchdog_seconds, self._blocked)

    def _blocked(self, name: str) -> None:
        if name in self.lines:
            self.lines[name].blocked += 1

    async def __aenter__(self) -> Toolbox:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all sessions and stop servers, workers and threads. Counts stay; the toolbox can be opened again."""
        runtime = self._runtime
        if runtime is None:
            return
        for session in list(self.sessions):
            await session.aclose()
        tasks = {task for task in runtime.tasks if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=1.0)
            for name in {runtime.tasks.get(task, "?") for task in stubborn}:
                logger.error(f"tool {name!r} ignores its cancellation; its task stays until the event loop ends")
        for line in self.lines.values():
            if line.workers is not None:
                await line.workers.aclose()
        for source in self._sources:
            await source.aclose()
        await _call_each(line.tool.shutdown for line in self.lines.values())
        self._forget()

    def _forget(self) -> None:
        if self._watchdog is not None:
            self._watchdog.close()
        if self._runtime is not None:
            self._runtime.threads.close()
            if self._runtime.loop.is_closed():
                for line in self.lines.values():
                    if line.workers is not None:
                        line.workers.kill_all()
        if self.recording is not None:
            self.recording.close()
        self._runtime = self._watchdog = self._opening = None
        self.sessions.clear()

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Calls by tool and outcome since the toolbox was made; `unknown` gathers names that no tool has."""
        lines = {**self.lines, **({self.unknown.tool.name: self.unknown} if any(self.unknown.counts.values()) else {})}
        return {name: {outcome.value: n for outcome, n in line.counts.items() if n} for name, line in lines.items()}

    def metrics(self) -> dict[str, float]:
        """Return flat numbers for a training log: the same keys every time, `tools/<name>/<outcome>` and totals."""
        out: dict[str, float] = {}
        for name, line in {**self.lines, "unknown": self.unknown}.items():
            for outcome, count in line.counts.items():
                out[f"tools/{name}/{outcome.value}"] = float(count)
            out[f"tools/{name}/seconds"] = line.seconds
            out[f"tools/{name}/retries"] = float(line.retried)
            out[f"tools/{name}/truncated"] = float(line.truncated)
            out[f"tools/{name}/blocked_loop"] = float(line.blocked)
        for outcome in Outcome:
            out[f"tools/all/{outcome.value}"] = sum(
                out[f"tools/{name}/{outcome.value}"] for name in [*self.lines, "unknown"]
            )
        out["tools/all/hanging_threads"] = float(self._runtime.threads.hanging if self._runtime else 0)
        return out


async def _call_each(hooks: Iterable[Callable[[], Any] | None]) -> None:
    """Call every hook once, also one that several tools share."""
    for hook in dict.fromkeys(each for each in hooks if each is not None):
        waiting = hook()
        if inspect.isawaitable(waiting):
            await waiting
