"""Attacks on a reward: what pays that should not, what costs that should not, crashes, non-finite values and time.

A reward is only as good as what it pays for. For every row, the right response is written in the recipe's dialect and
then changed, each change with a relation that any sound reward keeps: a junk call must cost, the order of calls must
not. The relations hold between two responses to one row, so that no scale has to be known. What is not judged: whether
the scale suits training, and how responses that differ only in their words should compare.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_toolrl.errors import AuthorError
from verl_toolrl.formats import get_dialect, write_response
from verl_toolrl.formats.tool_list import read_tools
from verl_toolrl.rewards.base import Reward, RewardFunction
from verl_toolrl.rewards.function import AnswerError
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.trajectory import ToolCall

__all__ = ["Finding", "LintReport", "Row", "SAMPLE", "lint_reward"]

_TOLERANCE = 1e-9
_THOUGHT, _ANSWER = "I think about it.", "Done."
_JUNK = ToolCall("no_such_tool", {"x": 1})


@dataclass(frozen=True)
class Row:
    """One row to attack with."""

    ground_truth: Any
    tools: Any = None


def _sample() -> tuple[Row, ...]:
    weather = {"city": "Paris", "days": 1, "metric": True}
    truths = [
        [ToolCall("get_weather", weather)],
        [ToolCall("get_weather", weather), ToolCall("get_time", {"zone": "CET"})],
        [ToolCall("search", {"q": "a", "n": 1}), ToolCall("search", {"q": "a", "n": 2})],
        [
            ToolCall("ping", {}),
            ToolCall("note", {"text": "naïve café", "tags": ["a", "b"], "at": {"x": 1.5, "y": None}}),
        ],
        [ToolCall("say", {"text": "write <tool_call> and </tool_call>"})],
        [],
    ]
    return tuple(Row(write_response(calls, thought=_THOUGHT, response=None if calls else _ANSWER)) for calls in truths)


SAMPLE = _sample()
"""Rows for a lint without rows of one's own: one call, several tools, one tool twice, nested values, tags, no call."""


@dataclass(frozen=True)
class Trial:
    """A response, and how its score must compare with that of another response to the same row."""

    kind: str
    """pays, costs or survives."""
    attack: str
    response: str
    relation: str = "finite"
    """`<`, `<=`, `==`, `>`, or `finite` where nothing is compared."""
    reference: str | None = None


@dataclass
class Finding:
    """One fault, with the smallest response that shows it."""

    kind: str
    """pays, costs, crash, non-finite, keys, slow, not picklable, not deterministic."""
    attack: str
    detail: str
    """What was found and what was wanted."""
    response: str
    ground_truth: Any
    count: int = 1
    """How many trials showed it."""


@dataclass
class LintReport:
    """Everything that was found."""

    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    trials: int = 0
    rows: int = 0
    unusable: list[str] = field(default_factory=list)
    """Rows whose ground truth cannot be read at all, and why."""
    slowest_ms: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, finding: Finding) -> None:
        """Add a finding, keeping the smallest example of its kind and attack."""
        key = (finding.kind, finding.attack)
        known = self.findings.get(key)
        if known is not None:
            finding.count += known.count
            if len(known.response) <= len(finding.response):
                known.count = finding.count
                return
        self.findings[key] = finding


def lint_reward(
    reward: RewardFunction, rows: Iterable[Row] = SAMPLE, *, dialect: str | None = None, max_seconds: float = 1.0
) -> LintReport:
    """Attack a reward.

    Args:
        reward: Any configured reward.
        rows: Rows with ground truths.
        dialect: How the model writes calls; default is the reward's own `dialect`, else toolrl.
        max_seconds: Time that one response of up to a megabyte may take.

    Returns:
        The findings, with the smallest example of each.

    Raises:
        ConfigError: If the dialect is unknown.
    """
    name: str = dialect or getattr(reward, "dialect", None) or "toolrl"
    get_dialect(name)
    report = LintReport()
    _check_pickle(reward, report)
    keys: list[str] | None = None
    for row in rows:
        report.rows += 1
        try:
            calls = list(parse_ground_truth(row.ground_truth).calls)
            read_tools(row.tools)
        except AuthorError as err:
            report.unusable.append(str(err))
            continue
        keys = _Attacker(reward, row, report, max_seconds, keys).run(trials(calls, name))
    return report


def _check_pickle(reward: RewardFunction, report: LintReport) -> None:
    try:
        pickle.loads(pickle.dumps(reward))
    except Exception as err:  # noqa: BLE001 - whatever a user's class raises is the finding
        report.add(Finding("not picklable", "pickle", f"{type(err).__name__}: {err}", "", None))


class _Attacker:
    """Runs the trials of one row."""

    def __init__(
        self, reward: RewardFunction, row: Row, report: LintReport, max_seconds: float, keys: list[str] | None
    ) -> None:
        self.reward, self.row, self.report, self.max_seconds, self.keys = reward, row, report, max_seconds, keys
        self.scores: dict[str, float | None] = {}

    def run(self, attacks: Iterable[Trial]) -> list[str] | None:
        """Run all trials and return the component keys."""
        for trial in attacks:
            self.report.trials += 1
            score = self.score(trial.response, trial.attack)
            if trial.reference is None or score is None:
                continue
            reference = self.score(trial.reference, "the response it is compared with")
            if reference is not None and not _holds(score, trial.relation, reference):
                detail = f"scores {score:g}, must be {trial.relation} {reference:g}"
                self.report.add(Finding(trial.kind, trial.attack, detail, trial.response, self.row.ground_truth))
        return self.keys

    def score(self, response: str, attack: str) -> float | None:
        """Score a response once; None where there is no number to compare."""
        if response not in self.scores:
            self.scores[response] = self._score(response, attack)
        return self.scores[response]

    def _score(self, response: str, attack: str) -> float | None:
        def found(kind: str, detail: str) -> None:
            self.report.add(Finding(kind, attack, detail, response, self.row.ground_truth))

        start = time.perf_counter()
        try:
            result = self._call(response)
        except AnswerError as err:
            found(err.kind, str(err))
            return None
        except Exception as err:  # noqa: BLE001 - whatever a reward raises on a response is the finding
            found("crash", f"{type(err).__name__}: {str(err)[:120]}")
            return None
        seconds = time.perf_counter() - start
        for _ in range(2):
            # A busy machine, or the first import of a library, is no fault of the reward.
            if seconds > self.max_seconds:
                start = time.perf_counter()
                self._call(response)
                seconds = min(seconds, time.perf_counter() - start)
        self.report.slowest_ms = max(self.report.slowest_ms, 1000 * seconds)
        if seconds > self.max_seconds:
            found("slow", f"{seconds:.2f} s for {len(response):,} characters, allowed {self.max_seconds:g} s")
        values = [result.score, *result.components.values()]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            found("non-finite", f"score {result.score}, components {result.components}")
            return None
        if self.keys is None:
            self.keys = list(result.components)
        elif list(result.components) != self.keys:
            found("keys", f"components {list(result.components)}, before {self.keys}")
        if len(response) < 10_000 and self._call(response) != result:
            found("not deterministic", "a second call gave another result")
        return float(result.score)

    def _call(self, response: str) -> Reward:
        return self.reward(
            response=response, ground_truth=self.row.ground_truth, tools=self.row.tools, step=1, total_steps=100
        )


def _holds(score: float, relation: str, reference: float) -> bool:
    difference = score - reference
    return {
        "<": difference < -_TOLERANCE,
        "<=": difference <= _TOLERANCE,
        "==": abs(difference) <= _TOLERANCE,
        ">": difference > _TOLERANCE,
    }[relation]


def trials(calls: Sequence[ToolCall], dialect: str) -> Iterator[Trial]:
    """Yield all trials for a row with these ground-truth calls."""

    def write(given: Sequence[ToolCall], thought: str = _THOUGHT) -> str:
        return write_response(given, dialect, thought=thought, response=None if given else _ANSWER)

    try:
        right, silence = write(calls), write([])
    except AuthorError:
        return  # the dialect cannot express a name of this row
    yield Trial("pays", "the right response", right)
    if calls:
        yield from _wrong_calls(calls, write, right)
        yield from _calls_that_are_none(right, silence, write, dialect)
        yield from _harmless(calls, write, right, dialect)
        yield from _partial(calls, write, right, silence)
    else:
        yield from _needless(write, right, dialect)
    yield from _truncated(right)
    yield from _hostile(right, dialect)


Write = Callable[..., str]


def _wrong_calls(calls: Sequence[ToolCall], write: Write, right: str) -> Iterator[Trial]:
    """Calls too many or wrong: each must cost."""
    yield Trial("pays", "one junk call added", write([*calls, _JUNK]), "<", right)
    yield Trial("pays", "a junk call put first", write([_JUNK, *calls]), "<", right)
    # As many junk calls as everything that is right is worth, in units of one call, leave nothing to be paid.
    buried = [*calls, *[_JUNK] * max(20, sum(3 + len(call.arguments) for call in calls))]
    yield Trial("pays", "right calls buried under junk calls", write(buried), "<=", write([]))
    yield Trial("pays", "junk pays more than silence", write([_JUNK] * 3), "<=", write([]))
    for call in calls:
        yield Trial("pays", "a duplicate call added", write([*calls, call]), "<", right)
    for index, call in enumerate(calls):
        for attack, changed in _changes(call):
            given = [*calls[:index], changed, *calls[index + 1 :]]
            # Another call of the row may be just that one.
            if sorted(map(repr, given)) != sorted(map(repr, calls)):
                yield Trial("pays", attack, write(given), "<", right)


def _changes(call: ToolCall) -> Iterator[tuple[str, ToolCall]]:
    yield "an argument added", ToolCall(call.name, {**call.arguments, "no_such_argument": 1})
    yield "a tool name in another case", ToolCall(call.name.swapcase(), call.arguments)
    for key, value in call.arguments.items():
        rest = {other: item for other, item in call.arguments.items() if other != key}
        yield "an argument dropped", ToolCall(call.name, rest)
        yield "an argument renamed", ToolCall(call.name, {**rest, f"{key}_": value})
        for attack, other in _other_values(value):
            yield attack, ToolCall(call.name, {**call.arguments, key: other})


def _other_values(value: Any) -> Iterator[tuple[str, Any]]:
    yield "a wrong value", "something else"
    if isinstance(value, bool):
        yield "an integer for a boolean", int(value)
        yield "text for a boolean", str(value).lower()
    elif value in (0, 1) and isinstance(value, int):
        yield "a boolean for an integer", bool(value)
    if isinstance(value, int) and not isinstance(value, bool):
        yield "text for a number", str(value)
    if value is not None and not isinstance(value, (list, dict)):
        yield "an array around a value", [value]
    if isinstance(value, list) and value[::-1] != value:
        yield "an array in another order", value[::-1]


def _calls_that_are_none(right: str, silence: str, write: Write, dialect: str) -> Iterator[Trial]:
    """Texts that hold no call: they must not pay more than an answer without a call."""
    yield Trial("pays", "calls echoed inside the thought", _echo(right, silence, write), "<=", silence)
    for attack, text in _EMPTY_BLOCKS.items():
        if dialect in ("toolrl", "hermes"):
            yield Trial("pays", attack, f"<think> {_THOUGHT} </think>\n{text}", "<=", silence)


_EMPTY_BLOCKS = {
    "an empty block": "<tool_call>\n\n</tool_call>",
    "prose inside a block": "<tool_call>\nI would call a tool.\n</tool_call>",
    "a block of tags": "<tool_call>\n<think></think>\n</tool_call>",
}


def _echo(right: str, silence: str, write: Write) -> str:
    body = right.replace("<think>", "").replace("</think>", "")
    try:
        return write([], thought=f"{_THOUGHT} {body}")
    except AuthorError:
        return silence


def _harmless(calls: Sequence[ToolCall], write: Write, right: str, dialect: str) -> Iterator[Trial]:
    """Changes without meaning: none may cost."""
    if len(calls) > 1:
        yield Trial("costs", "calls in another order", write(calls[::-1]), "==", right)
        # Of partly wrong calls, too: a greedy pairing fails here.
        wrong = [_spoil(call) for call in calls[:1]] + list(calls[1:])
        yield Trial("costs", "partly wrong calls in another order", write(wrong[::-1]), "==", write(wrong))
        better = [calls[-1], *[_spoil(call) for call in calls[1:]]]
        # With a call too many of one tool its first calls count, so that order may matter.
        if sorted(call.name for call in better) == sorted(call.name for call in calls):
            yield Trial("costs", "partly wrong calls in another order", write(better[::-1]), "==", write(better))
    backwards = [ToolCall(call.name, dict(reversed(list(call.arguments.items())))) for call in calls]
    yield Trial("costs", "arguments in another order", write(backwards), "==", right)
    mention = "The <tool_call> block comes next."
    if dialect != "react":
        yield Trial("costs", "a tag mentioned in the thought", write(calls, thought=mention), "==", right)
    if dialect == "toolrl":
        yield from _layout(calls, right)


def _layout(calls: Sequence[ToolCall], right: str) -> Iterator[Trial]:
    escaped = [json.dumps({"name": c.name, "parameters": dict(c.arguments)}, ensure_ascii=True) for c in calls]
    pretty = [json.dumps({"name": c.name, "parameters": dict(c.arguments)}, indent=2) for c in calls]
    safe = all("tool_call>" not in line for line in escaped)
    for attack, lines in {"unicode written as escapes": escaped, "pretty-printed JSON": pretty}.items():
        if safe:
            body = "\n".join(lines)
            text = f"<think> {_THOUGHT} </think>\n<tool_call>\n{body}\n</tool_call>"
            yield Trial("costs", attack, text, "==", right)
    yield Trial(
        "costs", "an empty line between the blocks", right.replace("\n<tool_call>", "\n\n<tool_call>", 1), "==", right
    )
    if len(calls) > 1 and safe:
        blocks = "\n".join(f"<tool_call>\n{line}\n</tool_call>" for line in escaped)
        yield Trial("costs", "a block for each call", f"<think> {_THOUGHT} </think>\n{blocks}", "==", right)
    yield Trial("costs", "line breaks around the response", f"\n{right}\n", "==", right)


def _spoil(call: ToolCall) -> ToolCall:
    if not call.arguments:
        return ToolCall(call.name, {"no_such_argument": 1})
    key = next(iter(call.arguments))
    return ToolCall(call.name, {**call.arguments, key: "something else"})


def _partial(calls: Sequence[ToolCall], write: Write, right: str, silence: str) -> Iterator[Trial]:
    """A part of the right calls: less than all of them, and no less than none."""
    yield Trial("pays", "silence", silence, "<", right)
    for count in range(1, len(calls)):
        yield Trial("pays", "a call left out", write(calls[:count]), "<", right)
        yield Trial("costs", "silence against a right call", silence, "<=", write(calls[:count]))


def _needless(write: Write, right: str, dialect: str) -> Iterator[Trial]:
    """The right response makes no call: every call must cost."""
    yield Trial("pays", "a needless call instead of an answer", write([_JUNK]), "<", right)
    if dialect == "toolrl":
        call = write([_JUNK]).partition("</think>\n")[2]
        head = f"<think> {_THOUGHT} </think>\n"
        yield Trial("pays", "a needless call before the answer", f"{head}{call}\n<response> ok </response>", "<", right)
        yield Trial("pays", "a call smuggled into the answer", f"{head}<response> ok {call} </response>", "<", right)
        yield Trial("pays", "a call behind the answer", f"{head}<response> ok </response>\n{call}", "<", right)
    elif dialect in ("hermes", "qwen3_coder"):
        yield Trial("pays", "a needless call behind the answer", f"{_ANSWER}\n{write([_JUNK])}", "<", right)


def _truncated(right: str) -> Iterator[Trial]:
    for share in (0.0, 0.25, 0.5, 0.75):
        cut = right[: int(share * len(right))]
        if "</think>" in cut and cut.partition("</think>")[2].strip() and "<" not in right.partition("</think>")[2]:
            continue  # a shorter answer without tags is an answer
        yield Trial("pays", "a truncated response", cut, "<", right)


def _hostile(right: str, dialect: str) -> Iterator[Trial]:
    """Texts that break readers: no crash, a finite score, in time; and never as good as the right response."""
    opening, closing = f"<think> {_THOUGHT} </think>\n<tool_call>\n", "\n</tool_call>"
    bodies = {
        "empty text": "",
        "white space": " \n\t\r\n ",
        "NUL and control characters": "\x00\x01\x1f\x7f",
        "lone surrogates": "\ud800 \udfff",
        "right-to-left and joined characters": "\u202e\u2066abc \u0301\u200d👩\u200d💻",
        "deep arrays": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
        "a huge number": "9" * 100_000,
        "not a number": '{"name": NaN, "parameters": Infinity}',
        "objects where text belongs": '{"name": {"a": [1]}, "parameters": [null]}',
        "null": "null",
        "a megabyte of tags": "<tool_call>" * 90_000,
        "a megabyte of closing tags": "</think>\n" * 110_000,
        "a megabyte of quotes": '"' * 1_000_000,
        "a megabyte of words": "word " * 200_000,
    }
    for attack, body in bodies.items():
        yield Trial("survives", attack, body)
        if body.strip():
            yield Trial("survives", f"{attack}, in a block", opening + body + closing)
    if dialect == "toolrl" and "<tool_call>" in right:
        yield Trial("pays", "a second, unclosed block", f"{right}\n<tool_call>\n{{", "<", right)
