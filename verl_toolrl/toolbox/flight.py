"""One tool call in the air: waits for its turn, runs, is timed, retried and sorted, and ends in exactly one result.

    launch -> [state free] -> [place free] -> [breaker, pace] -> run -> settle -> finish
                                   ^-------------- backoff ---------------+

A flight calls back instead of being a coroutine: an async tool costs one task, which runs up to its first wait before
`launch` returns, a sync inline tool none. That is what 20,000 calls a second need. Whatever happens the future of
`launch` gets one `ToolResult`; only `abort`, when the trajectory itself is cancelled, ends it without.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from verl_toolrl.toolbox.limits import Breaker, Deadlines, Gate, Pace
from verl_toolrl.toolbox.outcomes import ToolError, classify, describe
from verl_toolrl.toolbox.output import Cutter, render
from verl_toolrl.toolbox.prompt import first_step, in_two, new_task
from verl_toolrl.toolbox.threads import Job, Threads
from verl_toolrl.toolbox.tool import Isolation, Tool, ToolContext
from verl_toolrl.toolbox.workers import Worker, Workers, target_of
from verl_toolrl.trajectory import Outcome, ToolResult

__all__ = ["Flight", "Line", "Runtime", "StateSlot", "no_result"]

logger = logging.getLogger(__name__)

_STUBBORN_SECONDS = 1.0
_LATE_SECONDS = 0.05
_MAX_BACKOFF = 30.0
_PLACES_OF_A_PROCESS_TOOL = 2


class Runtime:
    """What all flights of one open toolbox share on one event loop."""

    def __init__(self, cutter: Cutter, threads: Threads) -> None:
        self.loop = asyncio.get_running_loop()
        self.cutter, self.threads = cutter, threads
        self.tasks: dict[asyncio.Task[None], str] = {}
        """Tool name of each running task of an async tool."""
        self.inline: str | None = None
        """Name of the sync inline tool that runs this moment."""
        self.deadlines = _ByLength(self.loop)
        """Time-outs by their seconds."""


class _ByLength(dict[float, Deadlines]):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __missing__(self, seconds: float) -> Deadlines:
        made = self[seconds] = Deadlines(self._loop, seconds)
        return made


class Line:
    """A tool in operation: its gates, its workers and its counts, over all trajectories."""

    def __init__(self, tool: Tool) -> None:
        self.tool, limits = tool, tool.limits
        places = limits.concurrency
        self.workers: Workers | None = None
        self.target: dict[str, str] | None = None
        if tool.isolation is Isolation.PROCESS:
            places = places or _PLACES_OF_A_PROCESS_TOOL
            self.workers = Workers(places, limits.memory_mb)
            self.target = target_of(tool.function, str(tool))
        self.gate = Gate(places) if places else None
        self.pace = Pace(limits.rate) if limits.rate else None
        self.breaker = Breaker(limits.breaker, limits.cooldown) if limits.breaker else None
        self.unguarded = self.gate is None and self.pace is None and self.breaker is None
        """Whether a call may run at once: the common case, and a shorter way."""
        self.counts: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.seconds = 0.0
        self.retried = self.truncated = self.blocked = 0


class StateSlot:
    """The state of one class in one trajectory; flights that use it go one after the other."""

    __slots__ = ("factory", "gate", "instance", "isolation", "lost", "made", "target", "worker", "workers")

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory, self.gate = factory, Gate(1)
        self.instance: Any = None
        self.made = False
        self.isolation: Isolation | None = None
        self.lost: Outcome | None = None
        """Set when a call was stopped in the middle of changing the state: nobody knows what it is now."""
        self.target: dict[str, Any] | None = None
        self.worker: Worker | None = None
        self.workers: Workers | None = None

    def get(self) -> Any:
        """Return the instance, made on first use."""
        if not self.made:
            self.instance = self.factory()
            self.made = True
        return self.instance


class Flight:
    """See the module."""

    __slots__ = (
        "_arguments", "_context", "_deadlines", "_future", "_handle", "_live", "_phase", "_run_timer", "_seen_late",
        "_slot", "_started", "_until", "_until_timer", "attempts", "line", "runtime", "task",
    )  # fmt: skip

    def __init__(
        self,
        runtime: Runtime,
        line: Line,
        arguments: dict[str, Any],
        *,
        slot: StateSlot | None = None,
        context: ToolContext | None = None,
        until: float | None = None,
    ) -> None:
        self.runtime, self.line, self._arguments = runtime, line, arguments
        self._slot, self._context, self._until = slot, context, until
        self._phase, self._live, self.attempts = "new", 0, 0
        self._handle: Job | Worker | None = None
        self._deadlines: Deadlines | None = None
        self._run_timer: asyncio.TimerHandle | None = None
        self._until_timer: asyncio.TimerHandle | None = None
        self._seen_late = False
        self.task: asyncio.Task[None] | None = None

    def launch(self) -> asyncio.Future[ToolResult]:
        """Start; the future is never left without an end."""
        loop = self.runtime.loop
        self._future: asyncio.Future[ToolResult] = loop.create_future()
        self._started = loop.time()
        if self._until is not None:
            self._until_timer = loop.call_at(self._until, self._out_of_time)
        if self._slot is None and self.line.unguarded:
            self._run()
            return self._future
        self._phase = "state"
        if self._slot is None or self._slot.gate.enter(self._state_is_free):
            self._state_is_free()
        return self._future

    # Turns: each of these may be called late, with the place it waited for, after the flight was ended.

    def _state_is_free(self) -> None:
        if self._phase == "done":
            assert self._slot is not None
            self._slot.gate.leave()
            return
        if self._slot is not None and self._slot.lost is not None:
            self._finish(self._slot.lost, error="the state was lost when an earlier call was stopped")
            return
        self._queue()

    def _queue(self) -> None:
        if self._phase == "done":
            return
        self._phase = "gate"
        if self.line.gate is None or self.line.gate.enter(self._place_is_free):
            self._place_is_free()

    def _place_is_free(self) -> None:
        if self._phase == "done":
            self._leave_gate()
            return
        loop, line = self.runtime.loop, self.line
        if line.breaker is not None and not line.breaker.allows(loop.time()):
            self._leave_gate()
            self._finish(Outcome.INFRA_ERROR, error="circuit breaker open after failures in a row")
            return
        self._phase = "pace"
        delay = line.pace.delay(loop.time()) if line.pace is not None else 0.0
        if delay > 0.0:
            self._run_timer = loop.call_later(delay, self._run)
        else:
            self._run()

    def _leave_gate(self) -> None:
        if self.line.gate is not None:
            self.line.gate.leave()

    # Running.

    def _run(self) -> None:
        tool = self.line.tool
        self._phase = "run"
        self._seen_late = False
        self.attempts += 1
        self._live += 1
        if self._context is not None and tool.wants_context:
            self._arguments = {**self._arguments, tool.wants_context: self._context}
        self._run_timer = None
        if tool.isolation is Isolation.INLINE and not tool.is_async:
            self._run_inline(tool)
            return
        token = self._live
        if tool.isolation is Isolation.PROCESS:
            self._start(self._run_in_process(token))
            return
        self._arm()
        if tool.isolation is Isolation.INLINE:
            self._start_at_once(self._run_async(token))
        else:
            self._run_in_thread(token)

    def _arm(self) -> None:
        timeout = self.line.tool.limits.timeout
        if timeout is not None:
            self._deadlines = self.runtime.deadlines[timeout]
            self._deadlines.start(self._timed_out)

    def _disarm(self) -> None:
        if self._deadlines is not None:
            self._deadlines.stop(self._timed_out)
            self._deadlines = None
        if self._run_timer is not None:
            self._run_timer.cancel()
            self._run_timer = None

    def _start(self, coroutine: Any) -> None:
        self.task = self.runtime.loop.create_task(coroutine)
        self.runtime.tasks[self.task] = self.line.tool.name

    def _start_at_once(self, coroutine: Any) -> None:
        runtime, name = self.runtime, self.line.tool.name
        self.task, context = new_task(runtime.loop, coroutine, name)
        runtime.tasks[self.task] = name
        if context is not None:
            first_step(runtime.loop, self.task, coroutine, context)

    def _run_inline(self, tool: Tool) -> None:
        before, self.runtime.inline = self.runtime.inline, tool.name
        try:
            slot = self._slot
            returned = (
                tool.function(**self._arguments)
                if slot is None
                else tool.function(self._state(slot), **self._arguments)
            )
        except BaseException as exc:  # SystemExit of a tool must not end the trainer
            self._ended(self._live, None, exc)
        else:
            self._ended(self._live, returned, None)
        finally:
            self.runtime.inline = before

    def _state(self, slot: StateSlot) -> Any:
        slot.isolation = self.line.tool.isolation
        return slot.get()

    async def _run_async(self, token: int) -> None:
        returned: Any = None
        error: BaseException | None = None
        try:
            function = self.line.tool.function if self._slot is None else self._with_state
            returned = await in_two(function, self._arguments)
        except BaseException as exc:  # as above; a cancellation that we asked for is no longer live and is dropped
            error = exc
        self.runtime.tasks.pop(self.task, None)  # type: ignore[arg-type]
        self._ended(token, returned, error)

    async def _with_state(self, **arguments: Any) -> Any:
        assert self._slot is not None
        return await self.line.tool.function(self._state(self._slot), **arguments)

    def _run_in_thread(self, token: int) -> None:
        tool, slot, loop = self.line.tool, self._slot, self.runtime.loop
        arguments = self._arguments

        def work() -> Any:
            return tool.function(**arguments) if slot is None else tool.function(self._state(slot), **arguments)

        def done(returned: Any, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(self._ended, token, returned, error)
            except RuntimeError:  # the loop was closed meanwhile; nobody waits any more
                pass

        self._handle = self.runtime.threads.submit(work, done)
        if self._handle is None:
            self._settle(Outcome.INFRA_ERROR, error="too many threads of earlier calls still hang")

    async def _run_in_process(self, token: int) -> None:
        line, slot = self.line, self._slot
        assert line.workers is not None and line.target is not None
        limit = (line.tool.limits.output_tokens or 1 << 20) * 16 + 16
        request = {"target": line.target, "arguments": self._arguments, "state": slot and slot.target, "limit": limit}
        answer: dict[str, Any] | None = None
        worker = None
        error: BaseException | None = None
        try:
            worker = slot.worker if slot is not None and slot.worker is not None else await line.workers.take()
            if slot is not None:
                slot.isolation, slot.worker, slot.workers = Isolation.PROCESS, worker, line.workers
            self._handle = worker
            self._arm()  # only now: starting a worker is not the tool's time
            answer = await worker.call(request)
        except BaseException as exc:  # as above
            error = exc
        self.runtime.tasks.pop(self.task, None)  # type: ignore[arg-type]
        if worker is not None and (answer is None or slot is None):
            if answer is None:
                line.workers.drop(worker)
                if slot is not None:
                    slot.worker, slot.lost = None, self._blame()
            else:
                line.workers.put(worker, float(answer.get("rss_mb") or 0.0))
        if token != self._live or self._phase == "done":
            return
        if answer is None:
            self._ended(token, None, error)
        elif answer.get("ok"):
            text = str(answer.get("text"))
            self._answered(text, text if answer.get("same") else answer.get("value"))
        else:
            self._settle(Outcome(answer["outcome"]), text=answer["text"], error=answer["error"])

    # Ends of an attempt.

    def _ended(self, token: int, returned: Any, exc: BaseException | None) -> None:
        if token != self._live or self._phase != "run":
            return
        if exc is not None:
            if isinstance(exc, asyncio.CancelledError):
                exc = ToolError("it was cancelled from within")
            outcome = classify(exc, self.line.tool.infrastructure_errors)
            if outcome is Outcome.TIMEOUT and self.line.tool.arguments_cause_timeout:
                outcome = Outcome.MODEL_ERROR
            text = describe(exc)
            self._settle(outcome, text=text, error=text)
            return
        if type(returned) is ToolResult:  # an adapter (MCP, verl) that has already sorted its answer
            if returned.outcome is Outcome.OK:
                self._answered(returned.content, returned.value)
            else:
                self._settle(returned.outcome, text=returned.content, error=returned.error, value=returned.value)
            return
        try:
            text, value = render(returned)
        except ToolError as err:
            self._settle(Outcome.TOOL_ERROR, text=str(err), error=str(err))
            return
        self._answered(text, value)

    def _answered(self, text: str, value: Any) -> None:
        check = self.line.tool.check_result
        if check is not None:
            try:
                problem = next(iter(check.iter_errors(value)), None)
                reason = problem and problem.message
            except (ValueError, TypeError) as err:
                reason = str(err)
            if reason:
                self._settle(
                    Outcome.TOOL_ERROR, text="The tool gave an invalid answer.", error=f"breaks its schema: {reason}"
                )
                return
        self._settle(Outcome.OK, text=text, value=value)

    def _blame(self) -> Outcome:
        return Outcome.MODEL_ERROR if self.line.tool.arguments_cause_timeout else Outcome.INFRA_ERROR

    def _timed_out(self, deadline: float) -> None:
        if self._phase != "run":
            return
        loop, limits = self.runtime.loop, self.line.tool.limits
        late = loop.time() - deadline
        if late > _LATE_SECONDS and not self._seen_late:
            # Another tool blocked the loop, and this one may have its answer in the next round: it gets the time back.
            self._seen_late = True
            deadline = loop.time() + min(late, limits.timeout or late)
            self._run_timer = loop.call_at(deadline, self._timed_out, deadline)
            return
        if isinstance(self._handle, Job) and not self._stop_attempt():
            return  # ended this very moment; its answer is on the way
        if not isinstance(self._handle, Job):
            self._stop_attempt()
        outcome = Outcome.MODEL_ERROR if self.line.tool.arguments_cause_timeout else Outcome.TIMEOUT
        self._settle(outcome, error=f"no answer within {limits.timeout:g} s", stopped=True)

    def _stop_attempt(self) -> bool:
        """Make the running attempt end, as far as its isolation allows; False if a thread has just ended by itself."""
        handle, self._handle = self._handle, None
        if isinstance(handle, Job):
            if not handle.abandon():
                self._handle = handle
                return False
        elif isinstance(handle, Worker):
            handle.kill()
        task, tasks = self.task, self.runtime.tasks
        if task is not None and not task.done():
            # One that is cancelled before its first step never gets to sign off by itself.
            task.add_done_callback(lambda ended: tasks.pop(ended, None))
            task.cancel()
        return True

    def _settle(
        self,
        outcome: Outcome,
        *,
        text: str | None = None,
        value: Any = None,
        error: str | None = None,
        stopped: bool = False,
    ) -> None:
        """End an attempt: give the place back, then retry or finish."""
        self._disarm()
        self._live += 1  # whatever the old attempt still says is not heard
        line, limits = self.line, self.line.tool.limits
        failed = outcome.is_infrastructure
        if line.breaker is not None:
            line.breaker.report(failed, self.runtime.loop.time())
        self._leave_gate()
        if self._slot is not None and stopped:
            self._hold_state(self._slot)
        elif failed and self.attempts <= limits.retries:
            line.retried += 1
            self._phase = "backoff"
            pause = min(limits.backoff * 2 ** (self.attempts - 1), _MAX_BACKOFF) * random.uniform(0.5, 1.0)
            self._run_timer = self.runtime.loop.call_later(pause, self._queue)
            return
        self._finish(outcome, text=text, value=value, error=error)

    def _hold_state(self, slot: StateSlot) -> None:
        """After a stop the state is free once the stopped code has ended, or lost where it cannot be waited for."""
        task, self.task = self.task, None
        if self.line.tool.isolation is not Isolation.INLINE or task is None:
            slot.lost = self._blame()
            slot.gate.leave()
        else:
            timer = self.runtime.loop.call_later(_STUBBORN_SECONDS, self._give_state_up, slot, task)

            def ended(_: asyncio.Task[None]) -> None:
                if slot.lost is None:
                    timer.cancel()
                    slot.gate.leave()

            task.add_done_callback(ended)
        self._slot = None

    def _give_state_up(self, slot: StateSlot, task: asyncio.Task[None]) -> None:
        if not task.done():
            slot.lost = self._blame()
            slot.gate.leave()

    def _out_of_time(self) -> None:
        if self._phase == "done":
            return
        phase = self._phase
        self._withdraw()
        error = "the trajectory's time was over"
        if phase == "run" and self._slot is not None:
            self._hold_state(self._slot)
        self._finish(Outcome.REFUSED, text="The time for this task is over.", error=error, state_held=phase != "state")

    def _withdraw(self) -> None:
        """Take the flight out of whatever it waits for or runs in."""
        phase, self._phase = self._phase, "done"
        self._live += 1
        self._disarm()
        if phase == "gate" and self.line.gate is not None:
            self.line.gate.forget(self._place_is_free)  # if it was called already, it gives the place back itself
        elif phase in ("pace", "run"):
            if phase == "run":
                self._stop_attempt()
            if self.line.breaker is not None:
                self.line.breaker.withdrawn()
            self._leave_gate()
        elif phase == "state" and self._slot is not None:
            self._slot.gate.forget(self._state_is_free)

    def _finish(
        self,
        outcome: Outcome,
        *,
        text: str | None = None,
        value: Any = None,
        error: str | None = None,
        state_held: bool = True,
    ) -> None:
        line, runtime = self.line, self.runtime
        self._phase = "done"
        if self._until_timer is not None:
            self._until_timer.cancel()
        if self._slot is not None and state_held:
            self._slot.gate.leave()
        content, cut = text or "", False
        if outcome is not Outcome.OK:
            content = _told(line.tool.name, outcome, text, error)
        if line.tool.limits.output_tokens is not None and len(content) > line.tool.limits.output_tokens // 4:
            try:
                content, _, cut = runtime.cutter.cut(content, line.tool.limits.output_tokens)
            except Exception as err:  # a tokenizer that chokes on a text must not lose the call
                logger.exception("the tokenizer failed on an answer of %s", line.tool)
                outcome, content, value = Outcome.INFRA_ERROR, "", None
                error = f"tokenizer: {describe(err)}"
        seconds = runtime.loop.time() - self._started
        line.counts[outcome] += 1
        line.seconds += seconds
        line.truncated += cut
        if not self._future.done():
            if outcome is Outcome.OK:
                error = None
            self._future.set_result(ToolResult(outcome, content, value, error, seconds, self.attempts, cut))

    def abort(self) -> None:
        """End without a result, because the trajectory itself was cancelled."""
        if self._phase == "done":
            return
        phase = self._phase
        self._withdraw()
        if self._until_timer is not None:
            self._until_timer.cancel()
        if self._slot is not None and phase != "state":
            self._slot.gate.leave()
        self._future.cancel()


def _told(name: str, outcome: Outcome, text: str | None, error: str | None) -> str:
    """What the model reads when a call did not end well. Causes that it cannot mend are for the log (`error`)."""
    if outcome is Outcome.INFRA_ERROR:
        return f"Error: {name} is not available at the moment."
    if outcome is Outcome.TIMEOUT:
        return f"Error: {name} did not answer in time."
    return f"Error: {text or error or 'the call failed'}"


def no_result(outcome: Outcome, name: str, text: str) -> ToolResult:
    """A result for a call that never became a flight."""
    return ToolResult(outcome, _told(name, outcome, text, text), error=text, attempts=0)
