"""The vocabulary of the package: what a model asks, what it gets back, and how a sampled interaction is recorded.

A *trajectory* is one sampled interaction. It is cut into *steps*: one assistant message with the tool calls read from
it and the tool responses that followed. All types are frozen and built of plain values, so that they pickle, compare
and turn into JSON; none of them knows verl or tensors.

Token positions are offsets into the *response* (everything after the prompt, tool responses included):

    response:       |<- step 0 ->|<- tools ->|<- step 1 ->|<- pad ->|
    response_mask:  | 1 1 1 1 1 1 | 0 0 0 0 0 | 1 1 1 1 1 1 | 0 0 0 0 |
    steps[0].span = (0, 6), steps[1].span = (11, 17)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Outcome", "Step", "StopReason", "ToolCall", "ToolResult", "Trajectory", "TRAJECTORY_SCHEMA_VERSION"]

TRAJECTORY_SCHEMA_VERSION = 1
"""Version of what `Trajectory.to_dict` writes. It rises when a reader of the old form would misread the new one."""


class Outcome(str, Enum):
    """How one tool call ended, and thereby whose doing it was."""

    OK = "ok"
    """The tool answered."""
    MODEL_ERROR = "model_error"
    """The model's mistake: unknown tool, arguments that break the schema, a time-out that the arguments cause."""
    TOOL_ERROR = "tool_error"
    """The tool understood the call and reported an error of its own ("no such city")."""
    TIMEOUT = "timeout"
    """The tool did not answer in time, and the arguments are not to blame."""
    INFRA_ERROR = "infra_error"
    """A server, process or network failure. Never becomes a reward."""
    REFUSED = "refused"
    """A budget or a policy forbade the call; the tool was not run."""

    @property
    def is_infrastructure(self) -> bool:
        """True where the model's choice did not decide the outcome, so that nothing may be learned from it."""
        return self in (Outcome.INFRA_ERROR, Outcome.TIMEOUT)


class StopReason(str, Enum):
    """Why a trajectory ended."""

    FINISHED = "finished"
    """The model answered without a call, or called a tool that ends the trajectory."""
    MAX_STEPS = "max_steps"
    """The budget of assistant messages was used up."""
    MAX_CALLS = "max_calls"
    """The budget of tool calls was used up."""
    MAX_TOKENS = "max_tokens"
    """The response was full: generation was cut, or the tool response no longer fitted."""
    MAX_SECONDS = "max_seconds"
    """The budget of seconds that tools may take was used up."""
    MALFORMED = "malformed"
    """The model wrote a call that could not be read, and the policy is to stop then."""
    ABORTED = "aborted"
    """The engine gave the request up (a weight update, a shutdown)."""
    INFRA_ERROR = "infra_error"
    """A failure of infrastructure ended it; it is kept out of the gradient."""


@dataclass(frozen=True)
class ToolCall:
    """One call as the model asked for it."""

    name: str
    """Tool name, as written."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Decoded arguments. ToolRL writes them under `parameters`, most others under `arguments`."""
    id: str | None = None
    """Identifier given by the dialect (OpenAI messages, Mistral); None where the dialect has none."""
    span: tuple[int, int] | None = None
    """Character offsets [start, end) of the call in the text that it was read from."""


@dataclass(frozen=True)
class ToolResult:
    """What came back for one call."""

    outcome: Outcome
    """How the call ended."""
    content: str
    """The text that the model reads."""
    value: Any = None
    """The tool's own return value where it is JSON-like, for rewards that check states; None otherwise."""
    error: str | None = None
    """Reason for anything but `OK`, for logs; `content` holds what the model was told."""
    seconds: float = 0.0
    """Wall-clock time of the call, retries included."""
    attempts: int = 1
    """How often the tool was run (0: not at all)."""
    truncated: bool = False
    """Whether `content` was cut to the output limit."""


@dataclass(frozen=True)
class Step:
    """One assistant message with what followed it; the unit of credit."""

    text: str
    """What the model wrote in this step."""
    calls: tuple[ToolCall, ...] = ()
    """Calls read from `text`, in order."""
    results: tuple[ToolResult, ...] = ()
    """One result a call, in the order of `calls`; fewer only when the trajectory ended in between."""
    span: tuple[int, int] | None = None
    """Token offsets [start, end) of `text` in the response; None when the trajectory was never tokenised."""
    unparsed: tuple[str, ...] = ()
    """Why pieces that look like calls could not be read, one entry a piece."""
    seconds: float = 0.0
    """Wall-clock time of generation and tools."""


@dataclass(frozen=True)
class Trajectory:
    """One sampled interaction, from the prompt to the last token."""

    steps: tuple[Step, ...]
    """Steps in order; never empty for a trajectory that was sampled."""
    stop_reason: StopReason = StopReason.FINISHED
    """Why it ended."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The prompt in chat form (role, content)."""
    id: str | None = None
    """Identifier of the session."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Free JSON-like values: data source, ground truth, uid, global step, a final state of the tools."""

    @property
    def final_answer(self) -> str:
        """Text of the last step, empty when there is none."""
        return self.steps[-1].text if self.steps else ""

    @property
    def lost_to_infrastructure(self) -> bool:
        """True if it must stay out of the gradient: a failure that the model did not cause decided what it saw."""
        return self.stop_reason is StopReason.INFRA_ERROR or any(
            result.outcome.is_infrastructure for step in self.steps for result in step.results
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values, with `version`; `from_dict` reads them back."""
        return {"version": TRAJECTORY_SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trajectory:
        """Read what `to_dict` wrote.

        Raises:
            DatasetError: If the version is newer than this package, or a field is missing or has the wrong form.
        """
        from verl_toolrl.errors import DatasetError

        version = data.get("version", TRAJECTORY_SCHEMA_VERSION)
        if version != TRAJECTORY_SCHEMA_VERSION:
            raise DatasetError(f"trajectory: version {version!r}, this package reads {TRAJECTORY_SCHEMA_VERSION}")
        try:
            return cls(
                steps=tuple(_step(step) for step in data["steps"]),
                stop_reason=StopReason(data.get("stop_reason", StopReason.FINISHED.value)),
                messages=tuple(data.get("messages", ())),
                id=data.get("id"),
                extra=dict(data.get("extra") or {}),
            )
        except (KeyError, TypeError, ValueError) as err:
            raise DatasetError(f"trajectory {data.get('id')!r}: {type(err).__name__}: {err}") from err


def _step(data: Mapping[str, Any]) -> Step:
    return Step(
        text=data["text"],
        calls=tuple(ToolCall(**{**call, "span": _pair(call.get("span"))}) for call in data.get("calls", ())),
        results=tuple(
            ToolResult(**{**result, "outcome": Outcome(result["outcome"])}) for result in data.get("results", ())
        ),
        span=_pair(data.get("span")),
        unparsed=tuple(data.get("unparsed", ())),
        seconds=float(data.get("seconds", 0.0)),
    )


def _pair(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))
