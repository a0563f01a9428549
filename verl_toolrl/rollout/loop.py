"""One trajectory: generate, read the calls, run them, append the answers, go on.

    response:       |<- step 0 ->|<- answers ->|<- step 1 ->|
    response_mask:  | 1 1 1 1 1 1 | 0 0 0 0 0 0 | 1 1 1 1 1 1 |
    logprobs:       |  engine's   |     0.0     |  engine's  |

Tokens are only ever appended: what the engine wrote is what is trained on, and each turn's prompt is the prompt of the
turn before with what followed. A trajectory ends, and its `StopReason` says so, when

    finished     an answer asks for no tool, or a tool ended the trajectory
    max_steps    the answer in which the last allowed step was used asks for tools once more
    max_calls    a call was refused because the session's budget of calls is used up (max_seconds likewise)
    max_tokens   generation was cut, or the tools' answers leave no room for another one
    malformed    a call could not be read, and the settings say to stop then

Calls in an answer that was cut are recorded and not run. Answers of tools that have no room are recorded in the step
and not appended. A failure that no choice of the model caused raises `SessionLost`: the engine died, gave up or wrote
nothing, or a tool's server did; nothing of such a trajectory may train.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from verl_toolrl.errors import ConfigError, DatasetError, InfrastructureError
from verl_toolrl.rollout.chat import ChatTokens, Message
from verl_toolrl.rollout.dialogue import Dialogue
from verl_toolrl.rollout.engine import Engine
from verl_toolrl.toolbox.output import Cutter
from verl_toolrl.trajectory import Step, StopReason, ToolCall, ToolResult, Trajectory

__all__ = ["Rollout", "SessionLost", "ToolSession", "TurnLimits", "run_dialogue"]


class ToolSession(Protocol):
    """What the loop needs of the tools of one trajectory; `toolbox.Session` has it."""

    stop_reason: StopReason | None

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Schemas of the tools in OpenAI form."""
        ...

    async def call_all(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Answer the calls of one step."""
        ...


@dataclass(frozen=True)
class TurnLimits:
    """What one trajectory may take, in tokens and answers. None means no limit of its own."""

    response_tokens: int = 1024
    """Tokens of the whole response, tools' answers included."""
    prompt_tokens: int | None = None
    """Tokens of the first prompt; a longer one is an error of whoever set the limit."""
    context_tokens: int | None = None
    """Tokens of prompt and response, where the engine takes fewer than both limits allow."""
    turn_tokens: int | None = None
    """Tokens of one answer. An answer that is cut ends the trajectory."""
    tool_tokens: int | None = None
    """Tokens of one tool's answer, beside the tool's own limit."""
    steps: int | None = 16
    """Answers of the model."""
    stop_on_malformed: bool = False
    """Whether a call that cannot be read ends the trajectory. Else the model is told why and goes on."""
    resumes: int = 8
    """How often a generation that the engine gave up is taken up again."""

    def __post_init__(self) -> None:
        for name in ("response_tokens", "prompt_tokens", "context_tokens", "turn_tokens", "tool_tokens", "steps"):
            value = getattr(self, name)
            if value is None and name != "response_tokens":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"rollout: {name} must be a positive whole number or null, found {value!r}")
        if isinstance(self.resumes, bool) or not isinstance(self.resumes, int) or self.resumes < 0:
            raise ConfigError(f"rollout: resumes must be a whole number >= 0, found {self.resumes!r}")


@dataclass
class Rollout:
    """A finished trajectory with its tokens."""

    prompt_ids: list[int]
    """Tokens of the first prompt."""
    response_ids: list[int]
    """Tokens behind it."""
    response_mask: list[int]
    """1 for a token that the engine wrote, 0 for any other; as long as `response_ids`."""
    logprobs: list[float] | None
    """Of the engine's tokens, 0.0 for the others; None if the engine gave none."""
    trajectory: Trajectory
    """Steps with their spans, calls, results and times; `messages` is the prompt."""
    appended: list[list[dict[str, Any]]] = field(default_factory=list)
    """Messages that followed each step but the last."""
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0


class SessionLost(InfrastructureError):
    """A failure that the model did not cause ended a trajectory; `trajectory` holds what there was of it."""

    def __init__(self, reason: str, trajectory: Trajectory) -> None:
        super().__init__(reason)
        self.reason, self.trajectory = reason, trajectory

    def __reduce__(self) -> tuple[type, tuple[str, Trajectory]]:
        return type(self), (self.reason, self.trajectory)


async def run_dialogue(
    *,
    engine: Engine,
    chat: ChatTokens,
    dialogue: Dialogue,
    session: ToolSession,
    messages: Sequence[Message],
    limits: TurnLimits,
    sampling: Mapping[str, Any] | None = None,
    request_id: str = "",
    schemas: list[dict[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Rollout:
    """Run one trajectory to its end.

    Args:
        engine: Where answers come from.
        chat: The model's tokenizer and template.
        dialogue: The form.
        session: The tools, entered.
        messages: The prompt.
        limits: Budgets; the session has its own for calls and seconds.
        sampling: Sampling parameters; `max_tokens` and `stop_token_ids` are set here.
        request_id: Name of the trajectory for the engine.
        schemas: What `session.schemas` would say, where the caller has it at hand; it is not changed.
        extra: Goes into `Trajectory.extra`.

    Raises:
        SessionLost: If a failure of infrastructure ended it.
        DatasetError: If the prompt is longer than allowed.
    """
    shown = session.schemas if schemas is None else schemas
    state = _Run(engine, chat, dialogue, session, shown, messages, limits, sampling or {}, request_id, extra or {})
    return await state.run()


class _Run:
    """The state of one trajectory."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatTokens,
        dialogue: Dialogue,
        session: ToolSession,
        schemas: list[dict[str, Any]],
        messages: Sequence[Message],
        limits: TurnLimits,
        sampling: Mapping[str, Any],
        request_id: str,
        extra: Mapping[str, Any],
    ) -> None:
        self.engine, self.chat, self.dialogue, self.session = engine, chat, dialogue, session
        self.limits, self.request_id, self.extra = limits, request_id, extra
        self.schemas = schemas
        self.messages = dialogue.messages(messages, self.schemas)
        self.in_template = self.schemas if dialogue.tools_in_template else None
        self.context = chat.prompt_ids(self.messages, tools=self.in_template)
        self.prompt_length = len(self.context)
        self.mask: list[int] = []
        self.logprobs: list[float] | None = [] if sampling.get("logprobs") else None
        self.sampling = {**sampling, "stop_token_ids": sorted(chat.stop_ids)}
        self.steps: list[Step] = []
        self.appended: list[list[dict[str, Any]]] = []
        self.cutter = Cutter(chat.tokenizer) if limits.tool_tokens is not None else None
        self.generate_seconds = self.tool_seconds = 0.0

    async def run(self) -> Rollout:
        allowed = self.limits.prompt_tokens
        if allowed is not None and self.prompt_length > allowed:
            raise DatasetError(f"the prompt with its tools has {self.prompt_length} tokens, {allowed} are allowed")
        stop: StopReason | None = None
        if self._room() < 1:
            raise DatasetError(
                f"a prompt of {self.prompt_length} tokens leaves no room for an answer in a context of "
                f"{self.limits.context_tokens}"
            )
        while stop is None:
            stop = await self._step()
        start = self.prompt_length
        return Rollout(
            prompt_ids=self.context[:start],
            response_ids=self.context[start:],
            response_mask=self.mask,
            logprobs=self.logprobs,
            trajectory=self._trajectory(stop),
            appended=self.appended,
            generate_seconds=self.generate_seconds,
            tool_seconds=self.tool_seconds,
        )

    def _room(self) -> int:
        """Tokens that the next answer may have."""
        limits, written = self.limits, len(self.mask)
        room = limits.response_tokens - written
        if limits.context_tokens is not None:
            room = min(room, limits.context_tokens - self.prompt_length - written)
        return room

    async def _step(self) -> StopReason | None:
        """Take one step; return why the trajectory ends with it, or None."""
        begun = time.perf_counter()
        start = len(self.mask)
        whole = await self._generate()
        generated = time.perf_counter()
        self.generate_seconds += generated - begun
        text = self.chat.answer_text(self.context[self.prompt_length + start :])
        parsed = self.dialogue.read(text, self.schemas, in_thought=self.chat.opens_thought)
        unread = tuple(problem.reason for problem in parsed.unparsed)
        step = Step(text, parsed.calls, (), (start, len(self.mask)), unread, generated - begun)
        self.steps.append(step)
        if not whole:
            return StopReason.MAX_TOKENS
        if not parsed.calls and not unread:
            return StopReason.FINISHED
        if unread and self.limits.stop_on_malformed:
            return StopReason.MALFORMED
        results = await self.session.call_all(parsed.calls) if parsed.calls else []
        if self.cutter is not None:
            results = [self._cut(result) for result in results]
        self.steps[-1] = replace(step, results=tuple(results), seconds=time.perf_counter() - begun)
        self.tool_seconds += time.perf_counter() - generated
        for call, result in zip(parsed.calls, results):
            if result.outcome.is_infrastructure:
                raise self._lost(f"tool {call.name}: {result.outcome.value}: {result.error or result.content}")
        if self.session.stop_reason is not None:
            return self.session.stop_reason
        if self.limits.steps is not None and len(self.steps) >= self.limits.steps:
            return StopReason.MAX_STEPS
        return await self._append(self.dialogue.observe(parsed.calls, results, unread))

    async def _generate(self) -> bool:
        """Write one answer behind the context; False if it was cut."""
        limits, room = self.limits, self._room()
        if limits.turn_tokens is not None:
            room = min(room, limits.turn_tokens)
        resumes = again = 0
        while True:
            try:
                generation = await self.engine.generate(
                    list(self.context), {**self.sampling, "max_tokens": room}, self.request_id
                )
            except InfrastructureError as err:
                raise self._lost(f"engine: {err}") from err
            tokens = generation.tokens
            self._take(tokens, generation.logprobs)
            room -= len(tokens)
            last = tokens[-1] if tokens else None
            if last in self.chat.stop_ids:
                return True
            if last in self.chat.end_ids and not generation.aborted and room > 0:
                return True  # nothing cut it: the engine stopped at an end that only it knows
            if generation.aborted and room > 0:
                resumes += 1
                if resumes > limits.resumes:
                    raise self._lost(f"engine: gave the request up {resumes} times", StopReason.ABORTED)
            elif tokens:
                return False  # cut, by our limit or by the engine's own
            else:
                # A model that has nothing to say writes its stop token. No token at all is the engine's doing.
                again += 1
                if again > 1:
                    raise self._lost("engine: wrote no token, twice")

    def _take(self, tokens: Sequence[int], logprobs: Sequence[float] | None) -> None:
        self.context += tokens
        self.mask += [1] * len(tokens)
        if self.logprobs is None or not tokens:
            return
        if logprobs is None or len(logprobs) != len(tokens):
            count = "no" if logprobs is None else len(logprobs)
            raise self._lost(f"engine: {count} log-probabilities for {len(tokens)} tokens")
        self.logprobs += logprobs

    def _cut(self, result: ToolResult) -> ToolResult:
        assert self.cutter is not None and self.limits.tool_tokens is not None
        content, _, cut = self.cutter.cut(result.content, self.limits.tool_tokens)
        return replace(result, content=content, truncated=True) if cut else result

    async def _append(self, messages: list[dict[str, Any]]) -> StopReason | None:
        """Append the tools' answers, if they leave room for one more answer."""
        harmless = self.chat.harmless
        messages = [{key: harmless(value) for key, value in message.items()} for message in messages]
        tail = await self.chat.tail_ids(messages, self.context[-1], tools=self.in_template)
        if self._room() <= len(tail):
            return StopReason.MAX_TOKENS
        self.context += tail
        self.mask += [0] * len(tail)
        if self.logprobs is not None:
            self.logprobs += [0.0] * len(tail)
        self.appended.append(messages)
        return None

    def _trajectory(self, stop: StopReason) -> Trajectory:
        return Trajectory(tuple(self.steps), stop, tuple(self.messages), self.request_id or None, dict(self.extra))

    def _lost(self, reason: str, stop: StopReason = StopReason.INFRA_ERROR) -> SessionLost:
        return SessionLost(reason, self._trajectory(stop))
