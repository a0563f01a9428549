"""The tools of one trajectory: its state, its budget and its calls, from the first step to the last.

    async with toolbox.session("trajectory-7", state={"Inventory": {"stock": {"apple": 3}}}) as session:
        results = await session.call_all(calls)          # one result a call, in order
        if session.stop_reason is not None: ...          # a budget is used up, or a tool ended the trajectory
        picture = await session.snapshot()               # what the states are now, for a reward

Leaving the block releases every state, whatever happened inside.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from verl_toolrl.errors import ConfigError, InfrastructureError, ToolDefinitionError, UnknownNameError, nearest
from verl_toolrl.toolbox.flight import Flight, Line, Runtime, StateSlot, no_result
from verl_toolrl.toolbox.limits import Budget
from verl_toolrl.toolbox.outcomes import ModelMistake, classify, describe, place_of
from verl_toolrl.toolbox.tool import Isolation, StatefulTool, StateSpec, Tool, ToolContext
from verl_toolrl.toolbox.workers import Worker, target_of
from verl_toolrl.trajectory import Outcome, StopReason, ToolCall, ToolResult

if TYPE_CHECKING:
    from verl_toolrl.toolbox.box import Toolbox

__all__ = ["Session"]

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_SNAPSHOT_SECONDS = 60.0


class Session:
    """Made by `Toolbox.session`; use it with `async with`."""

    def __init__(
        self,
        box: Toolbox,
        trajectory_id: str,
        *,
        state: Mapping[str, Mapping[str, Any]],
        budget: Budget,
        names: Sequence[str] | None,
        extra: Mapping[str, Any],
    ) -> None:
        self.id, self.budget = trajectory_id, budget
        self.stop_reason: StopReason | None = None
        """Why no further call is answered; None while calls are."""
        self.ended_by: ToolCall | None = None
        """The call of a tool that ended the trajectory (`finish`), if one did."""
        self.calls = self.steps = self.tokens = 0
        """What has been spent."""
        self.seconds = 0.0
        """What the tools have taken; counted where the budget limits it."""
        self._box, self._given, self._names = box, state, names
        self._extra = extra
        self._slots: dict[str, StateSlot] = {}
        self._history: dict[str, str] = {}
        self._flights: set[Flight] = set()
        self._until: float | None = None  # of the event loop's clock; moves on while the model writes
        self._answering = 0
        self._runtime: Runtime | None = None
        self._closed = False

    async def __aenter__(self) -> Session:
        self._runtime = await self._box.open()
        if self._names is not None:
            for name in self._names:
                if name not in self._box.lines:
                    raise UnknownNameError("tool", name, self._box.lines)
        self._check_state()
        self._box.sessions.add(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _check_state(self) -> None:
        specs = self._box.states
        for name, keywords in self._given.items():
            if name not in specs:
                raise UnknownNameError("tool state", name, specs)
            if not isinstance(keywords, Mapping):
                raise ConfigError(f"state of {name}: wanted a mapping of keywords, found {type(keywords).__name__}")
            parameters = inspect.signature(specs[name].factory).parameters
            if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                continue
            for key in keywords:
                if key not in parameters:
                    known = ", ".join(parameters) or "none"
                    raise ConfigError(f"state of {name}: no keyword {key!r}{nearest(key, parameters)}; known: {known}")

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Schemas of this trajectory's tools in OpenAI form, for the chat template."""
        return self._box.schemas(self._names)

    async def call(self, call: ToolCall) -> ToolResult:
        """Answer one call; a step of its own."""
        return (await self.call_all([call]))[0]

    async def call_all(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Answer the calls of one step: in parallel where they share no state, results in the order of the calls.

        Never raises for what a model wrote. A call after one that ended the trajectory is refused.
        """
        if self._closed or self._runtime is None:
            raise RuntimeError("a session is used inside `async with toolbox.session(...)`")
        self._start_clock()
        self._open_step(bool(calls))
        waiting: list[ToolResult | asyncio.Future[ToolResult]] = []
        flights: list[Flight] = []
        try:
            for call in calls:
                line = self._box.lines.get(call.name)
                if line is not None and line.tool.ends_trajectory and self.stop_reason is None:
                    for each in waiting:
                        if isinstance(each, asyncio.Future):
                            await each
                begun = self._begin(call, line, flights)
                waiting.append(begun)
                if line is not None and line.tool.ends_trajectory and self.stop_reason is None:
                    result = begun if isinstance(begun, ToolResult) else await begun
                    if result.outcome is Outcome.OK:
                        self.stop_reason, self.ended_by = StopReason.FINISHED, call
            results = [each if isinstance(each, ToolResult) else await each for each in waiting]
        except BaseException:
            for flight in flights:
                flight.abort()
            raise
        finally:
            self._flights.difference_update(flights)
            self._stop_clock()
        return self._charged(results) if self.budget.tokens is not None else results

    def _start_clock(self) -> None:
        """Let the budget of seconds run: the model's own time, and a trainer that pauses the engine, are not in it."""
        self._answering += 1
        if self.budget.seconds is not None and self._answering == 1:
            assert self._runtime is not None
            self._until = self._runtime.loop.time() + self.budget.seconds - self.seconds

    def _stop_clock(self) -> None:
        self._answering -= 1
        if self.budget.seconds is not None and self._answering == 0:
            assert self._runtime is not None and self._until is not None
            self.seconds = self.budget.seconds - (self._until - self._runtime.loop.time())

    def _open_step(self, any_call: bool) -> None:
        if not any_call or self.stop_reason is not None:
            return
        assert self._runtime is not None
        if self.budget.steps is not None and self.steps >= self.budget.steps:
            self.stop_reason = StopReason.MAX_STEPS
        elif self._until is not None and self._runtime.loop.time() >= self._until:
            self.stop_reason = StopReason.MAX_SECONDS
        else:
            self.steps += 1

    def _begin(
        self, call: ToolCall, line: Line | None, flights: list[Flight]
    ) -> ToolResult | asyncio.Future[ToolResult]:
        """Refuse, replay or launch one call."""
        box, runtime = self._box, self._runtime
        assert runtime is not None
        if self.stop_reason is None and self.budget.calls is not None and self.calls >= self.budget.calls:
            self.stop_reason = StopReason.MAX_CALLS
        if self.stop_reason is not None:
            return self._answer(line, Outcome.REFUSED, call.name, _REFUSALS[self.stop_reason])
        self.calls += 1
        if line is None or (self._names is not None and call.name not in self._names):
            return self._answer(None, Outcome.MODEL_ERROR, call.name, self._no_such_tool(call.name))
        tool = line.tool
        try:
            arguments = tool.check(call.arguments)
        except ModelMistake as err:
            return self._answer(line, Outcome.MODEL_ERROR, call.name, str(err))
        slot = self._slot(tool.state, tool) if tool.state is not None else None
        key = ""
        if box.recording is not None:
            key = self._key(call, tool)
            known = box.recording.find(key, slot is not None)
            if known is not None:
                line.counts[known.outcome] += 1
                return known
            if box.recording.mode == "replay":
                error = f"the recording {box.recording.path} has no answer to this call"
                return self._answer(line, Outcome.INFRA_ERROR, call.name, error)
        if arguments is call.arguments:
            for each in arguments.values():
                if type(each) is list or type(each) is dict:
                    # A tool that sorts its list must not change the record of the call.
                    arguments = copy.deepcopy(arguments)
                    break
        flight = Flight(
            runtime,
            line,
            arguments,
            slot=slot,
            context=ToolContext(self.id, self._extra) if tool.wants_context else None,
            until=self._until,
        )
        flights.append(flight)
        self._flights.add(flight)
        future = flight.launch()
        if self._until is not None:
            future.add_done_callback(self._note_time)
        if box.recording is not None:
            future.add_done_callback(partial(self._record, key, call, slot is not None))
        return future

    def _answer(self, line: Line | None, outcome: Outcome, name: str, text: str) -> ToolResult:
        (line or self._box.unknown).counts[outcome] += 1
        return no_result(outcome, name, text)

    def _no_such_tool(self, name: str) -> str:
        names = list(self._names if self._names is not None else self._box.lines)
        shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        return f"There is no tool named {str(name)[:80]!r}{nearest(name, names) or '.'} Tools: {shown}."

    def _slot(self, spec: StateSpec, tool: Tool) -> StateSlot:
        slot = self._slots.get(spec.name)
        if slot is None:
            given = self._given.get(spec.name, {})
            slot = self._slots[spec.name] = StateSlot(partial(spec.make, copy.deepcopy(dict(given))))
        if tool.isolation is Isolation.PROCESS and slot.target is None:
            keywords = {**spec.config, **self._given.get(spec.name, {})}
            slot.target = {"target": target_of(spec.factory, str(tool)), "keywords": keywords}
        return slot

    def _key(self, call: ToolCall, tool: Tool) -> str:
        recording = self._box.recording
        assert recording is not None
        history = ""
        if tool.state is not None:
            name = tool.state.name
            start = recording.key(name, {"config": tool.state.config, "given": self._given.get(name, {})})
            history = self._history.get(name, start)
            self._history[name] = recording.key(call.name, call.arguments, history)
        return recording.key(call.name, call.arguments, history)

    def _record(self, key: str, call: ToolCall, stateful: bool, future: asyncio.Future[ToolResult]) -> None:
        if not future.cancelled() and self._box.recording is not None:
            self._box.recording.add(key, call.name, call.arguments, future.result(), stateful)

    def _note_time(self, future: asyncio.Future[ToolResult]) -> None:
        assert self._runtime is not None and self._until is not None
        over = self._runtime.loop.time() >= self._until
        if over and self.stop_reason is None and not future.cancelled() and future.result().outcome is Outcome.REFUSED:
            self.stop_reason = StopReason.MAX_SECONDS

    def _charged(self, results: list[ToolResult]) -> list[ToolResult]:
        """Charge the answers in order, and cut the one that no longer fits."""
        assert self.budget.tokens is not None and self._runtime is not None
        cutter, out = self._runtime.cutter, []
        for result in results:
            left = max(self.budget.tokens - self.tokens, 0)
            content, spent, cut = cutter.cut(result.content, left) if left else ("[cut: no tokens left]", 0, True)
            self.tokens += spent
            if cut:
                result = ToolResult(**{**vars(result), "content": content, "truncated": True})
            out.append(result)
        if self.tokens >= self.budget.tokens and self.stop_reason is None:
            self.stop_reason = StopReason.MAX_TOKENS
        return out

    def state(self, name: str) -> Any:
        """Return the live instance of a state, made now if no call has used it yet.

        Raises:
            UnknownNameError: If no tool has a state of this name.
            ConfigError: If it lives in a worker process; `snapshot` works there too.
        """
        specs = self._box.states
        if name not in specs:
            raise UnknownNameError("tool state", name, specs)
        tool = next(line.tool for line in self._box.lines.values() if line.tool.state and line.tool.state.name == name)
        if tool.isolation is Isolation.PROCESS:
            raise ConfigError(f"the state {name} lives in a worker process; use snapshot()")
        return self._slot(specs[name], tool).get()

    async def snapshot(self) -> dict[str, Any]:
        """Return what `snapshot()` of every state says, by name, also of states that no call has touched.

        None stands for a state whose class has no `snapshot`, and for one that is lost because of what the model wrote
        (a tool with `arguments_cause_timeout` was stopped in the middle of changing it).

        Raises:
            InfrastructureError: If a state is lost for any other reason, or its worker process died: nobody knows what
                it is, and no reward may follow from that.
            ToolDefinitionError: If the author's `snapshot` or constructor raises; the text says where.
        """
        return {name: await self._snapshot_of(name, spec) for name, spec in self._box.states.items()}

    async def _snapshot_of(self, name: str, spec: StateSpec) -> Any:
        if getattr(spec.factory, "snapshot", None) in (None, StatefulTool.snapshot):
            return None
        lines = [line for line in self._box.lines.values() if line.tool.state and line.tool.state.name == name]
        slot = self._slot(spec, lines[0].tool)
        await self._come_to_rest(slot)
        where = f"state {name} of trajectory {self.id}"
        try:
            if slot.lost is Outcome.MODEL_ERROR:
                return None
            if slot.lost is not None:
                raise InfrastructureError("it was lost when a call was stopped or its worker process died")
            if lines[0].tool.isolation is Isolation.PROCESS:
                return await self._remote_snapshot(slot, lines[0], where)
            return copy.deepcopy(slot.get().snapshot())
        except ToolDefinitionError:
            self._box.faults[f"snapshot: {name}: ToolDefinitionError"] += 1
            raise
        except Exception as err:
            self._box.faults[f"snapshot: {name}: {type(err).__name__}"] += 1
            declared = {each for line in lines for each in line.tool.infrastructure_errors}
            if classify(err, tuple(declared)).is_infrastructure:
                raise InfrastructureError(f"{where}: {describe(err)}") from err
            raise _authors_error(where, lines[0].tool, describe(err), place_of(err)) from err

    async def _come_to_rest(self, slot: StateSlot) -> None:
        """Wait until no call is at work on a state; one that was stopped may still be ending."""
        assert self._runtime is not None
        free: asyncio.Future[None] = self._runtime.loop.create_future()
        if not slot.gate.enter(lambda: _free(free, slot)):
            await free
        slot.gate.leave()

    async def _remote_snapshot(self, slot: StateSlot, line: Line, where: str) -> Any:
        assert line.workers is not None
        if slot.worker is None:  # no call has made the state yet
            slot.worker, slot.workers = await line.workers.take(), line.workers
        request = {"op": "snapshot", "state": slot.target}
        answer = await asyncio.wait_for(slot.worker.call(request), _SNAPSHOT_SECONDS)
        if answer.get("ok"):
            return json.loads(answer["snapshot"])
        if Outcome(answer["outcome"]).is_infrastructure:
            raise InfrastructureError(str(answer["error"]))
        raise _authors_error(where, line.tool, str(answer["error"]), str(answer["place"]))

    async def aclose(self) -> None:
        """End all calls and release all states; also when cancelled in the middle. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._box.sessions.discard(self)
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        for flight in list(self._flights):
            flight.abort()
        self._flights.clear()
        if self._slots or tasks:
            await _finish_anyway(self._release([task for task in tasks if not task.done()]))

    async def _release(self, tasks: list[asyncio.Task[None]]) -> None:
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for name, slot in self._slots.items():
            try:
                await self._release_slot(slot)
            except Exception as err:
                logger.exception(f"closing the state {name} of trajectory {self.id} failed")
                self._box.faults[f"close: {name}: {describe(err)[:80]}"] += 1
        self._slots.clear()

    async def _release_slot(self, slot: StateSlot) -> None:
        worker, slot.worker = slot.worker, None
        if worker is not None and slot.workers is not None:
            await _give_back(worker, slot)
        close = getattr(slot.instance, "close", None) if slot.made else None
        slot.instance = None
        if not callable(close):
            return
        if slot.isolation is Isolation.THREAD:
            await self._close_in_thread(close)
            return
        closing = close()
        if inspect.isawaitable(closing):
            await asyncio.wait_for(closing, _CLOSE_SECONDS)

    async def _close_in_thread(self, close: Any) -> None:
        assert self._runtime is not None
        loop = self._runtime.loop
        done: asyncio.Future[BaseException | None] = loop.create_future()

        def ended(_: Any, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(_set_once, done, error)

        job = self._runtime.threads.submit(close, ended)
        if job is None:
            raise TimeoutError("too many threads hang")
        try:
            error = await asyncio.wait_for(asyncio.shield(done), _CLOSE_SECONDS)
        except asyncio.TimeoutError:
            job.abandon()
            raise
        if error is not None:
            raise RuntimeError(describe(error)) from error


def _authors_error(where: str, tool: Tool, error: str, place: str) -> ToolDefinitionError:
    """What an author reads whose class cannot say what its state is."""
    return ToolDefinitionError(f"{where} ({tool} and others that share it): its class raised at {place}: {error}")


def _free(waiting: asyncio.Future[None], slot: StateSlot) -> None:
    """Take over a state that became free, or pass it on where nobody waits any more."""
    if waiting.done():
        slot.gate.leave()
    else:
        waiting.set_result(None)


def _set_once(future: asyncio.Future[BaseException | None], value: BaseException | None) -> None:
    if not future.done():
        future.set_result(value)


async def _give_back(worker: Worker, slot: StateSlot) -> None:
    assert slot.workers is not None
    try:
        answer = await asyncio.wait_for(worker.call({"op": "release"}), _CLOSE_SECONDS)
    except BaseException:
        slot.workers.drop(worker)
        raise
    slot.workers.put(worker, float(answer.get("rss_mb") or 0.0))
    if not answer.get("ok"):
        raise RuntimeError(str(answer.get("error")))


async def _finish_anyway(work: Any) -> None:
    """Run `work` to its end even if the caller is cancelled meanwhile; the cancellation is then passed on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as err:
            if task.cancelled():
                break
            cancelled = err
        except Exception:
            break
    if cancelled is not None:
        raise cancelled
    task.result()


_REFUSALS = {
    StopReason.FINISHED: "The task was already finished.",
    StopReason.MAX_CALLS: "The budget of tool calls is used up. Answer without tools.",
    StopReason.MAX_STEPS: "The budget of steps is used up. Answer without tools.",
    StopReason.MAX_TOKENS: "The budget of tokens is used up. Answer without tools.",
    StopReason.MAX_SECONDS: "The time for this task is over.",
}
