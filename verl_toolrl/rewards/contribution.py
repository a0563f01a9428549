"""Contribution: was a tool's answer used?

StepTool (arXiv:2410.07745v4) rewards a call for helping the final answer and leaves open how to measure it. The rule
here follows information. A call *contributes* if its answer brought something that the model had not seen, and if that
turns up in the final answer, or in the arguments of a later call that contributes itself. So an unused call does not
become useful by feeding another unused call, and a call that repeats what is known brings nothing.

Things are tokens: words, numbers ("1,234.50" is 1234.5), identifiers. Evidence is weighed, so that a stray "10" or
"with" proves nothing: a token with a digit weighs 3 from three characters on, 2 with two, 1 with one; a name (a capital
inside a sentence, or at the start of a JSON value) weighs 3; another word of four letters or more weighs 1, function
words and shorter words 0. A call needs 3, or all the weight its answer can have when that is less ("5", "sunny"). An
answer of one or two weightless tokens ("yes") needs any of them.

What the rule does not see: an answer that is used only by being understood (a confirmed booking, a comparison that the
model puts in its own words), and arithmetic on numbers. An answer that is quoted without need counts as used.

A second, cruder rule is the authors': `steptool_released.contributing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from verl_toolrl.trajectory import Step, ToolCall, ToolResult, Trajectory

__all__ = ["Attempt", "CallUse", "attempts", "call_key", "final_answer", "is_finish", "tokens", "used_calls"]

_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\w+(?:[-.:/@]\w+)*")
_NAME = re.compile(r"(?<=[a-z0-9,;] )[A-Z]\w{2,}")
_NAME_IN_VALUES = re.compile(r"(?:(?<=[a-z0-9,;] )|(?<=\n))[A-Z]\w{2,}")
_DECIMAL = re.compile(r"\d+\.\d+")
_FUNCTION_WORDS = frozenset(
    """
    about above after again also another because been before being below between both could does doing done down during
    each either ever every few from further have having here hers himself however into itself just like made make many
    might more most much must myself need neither none only other ours over please same shall should since some such
    than that their them then there these they this those though through under until upon used using very want well
    were what when where which while whom whose will with within without would your yours
    answer data error false null response result results status success true value values
    """.split()
)
_NEEDED = 3


def tokens(text: str) -> set[str]:
    """Return the normalised tokens of a text: lower case, numbers in one spelling."""
    found = set(_TOKEN.findall(text.lower()))
    odd = [token for token in found if "," in token or "." in token]
    for token in odd:
        number = token.replace(",", "")
        if _DECIMAL.fullmatch(number):
            number = number.rstrip("0").rstrip(".")
        if number != token:
            found.discard(token)
            found.add(number)
    return found


@lru_cache(maxsize=65536)
def _weight(token: str) -> int:
    if any(character.isdigit() for character in token):
        return min(len(token), _NEEDED)
    return 1 if len(token) >= 4 and token not in _FUNCTION_WORDS else 0


def _values(value: Any) -> str:
    """The leaves of a JSON-like value, a line each; keys are the tool's vocabulary, not its answer."""
    leaves: list[str] = [""]
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        elif item is not None and not isinstance(item, bool):
            leaves.append(_text(item))
    return "\n".join(leaves)


def _text(value: Any) -> str:
    """`str`, and empty for what has no text (an integer with more digits than Python converts)."""
    try:
        return str(value)
    except (ValueError, RecursionError):
        return ""


class _Evidence(NamedTuple):
    """What an answer holds."""

    tokens: set[str]
    names: set[str]
    """Tokens that stand as a name; they may be among the tokens or, where one is written with a hyphen, not."""


_NOTHING = _Evidence(set(), set())


def _evidence(content: str) -> _Evidence:
    text, name = content, _NAME
    if content[:1] in ("{", "["):
        try:
            text, name = _values(json.loads(content)), _NAME_IN_VALUES
        except (ValueError, RecursionError):
            pass
    return _Evidence(tokens(text), {found.lower() for found in name.findall(text)} - _FUNCTION_WORDS)


def call_key(call: ToolCall) -> str:
    """Return a text that is equal for calls of the same tool with the same arguments, whatever the order of names."""
    try:
        return f"{call.name}\n{json.dumps(call.arguments, sort_keys=True, default=str)}"
    except (TypeError, ValueError, RecursionError):  # names that do not sort, a value that contains itself
        return f"{call.name}\n{_text(call.arguments)}"


_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<(answer|response)>(.*?)(?:</\1>|\Z)", re.DOTALL)


def final_answer(trajectory: Trajectory, *, finish_tool: str | None = "Finish") -> str:
    """Return what the user gets to read.

    The argument `final_answer` of a closing call of `finish_tool` if there is one; otherwise the last step's text
    without `<think>` blocks, or the inside of its last `<answer>` or `<response>` block. Empty when the last step made
    other calls, since then nobody answered.
    """
    if not trajectory.steps:
        return ""
    last = trajectory.steps[-1]
    for call in last.calls:
        if is_finish(call, finish_tool):
            answer = call.arguments.get("final_answer", "") if isinstance(call.arguments, Mapping) else ""
            return answer if isinstance(answer, str) else _text(answer)
    if last.calls:
        return ""
    text = _THINK.sub("", last.text)
    blocks = _ANSWER.findall(text)
    return (blocks[-1][1] if blocks else text).strip()


def is_finish(call: ToolCall, finish_tool: str | None) -> bool:
    """Whether the call is the one that ends a trajectory (its name in any case)."""
    return finish_tool is not None and call.name.lower() == finish_tool.lower()


class Attempt(NamedTuple):
    """A call that can be rewarded, with its result."""

    call: ToolCall
    result: ToolResult | None
    """None when the trajectory ended before the call was run."""


def attempts(step: Step, finish_tool: str | None = "Finish") -> list[Attempt]:
    """Return the calls of a step with their results, without the call that ends the trajectory."""
    results: list[ToolResult | None] = [*step.results, *[None] * (len(step.calls) - len(step.results))]
    return [Attempt(c, r) for c, r in zip(step.calls, results) if not is_finish(c, finish_tool)]


@dataclass(frozen=True)
class CallUse:
    """What became of one call."""

    step: int
    """Index of its step."""
    success: bool
    """SuccCalling."""
    repeated: bool
    """Same tool and arguments as an earlier call."""
    used: bool
    """Contribution: successful, not a repetition, and its answer was used."""


def used_calls(
    trajectory: Trajectory, tried: Sequence[Sequence[Attempt]], success: Sequence[Sequence[bool]], answer: str
) -> list[CallUse]:
    """Follow every call's answer to where it is used.

    Args:
        trajectory: The prompt and the text of the steps.
        tried: Calls of each step (`attempts`).
        success: SuccCalling of each of them; the answer of a failed call is no evidence.
        answer: Final answer.

    Returns:
        One entry a call, in order.
    """
    prompt = _prompt_tokens(trajectory)
    known = set(prompt)
    seen: set[str] = set()
    traces: list[_Trace] = []
    for index, step in enumerate(trajectory.steps):
        known |= tokens(step.text)
        arguments = [tokens(_values(attempt.call.arguments)) for attempt in tried[index]]
        known.update(*arguments)
        for (call, result), own, good in zip(tried[index], arguments, success[index]):
            key = call_key(call)
            found = _evidence(result.content) if good and result is not None else _NOTHING
            # The bar depends on this call and the prompt alone, so that no other call can lower it.
            bar = _bar(found._replace(tokens=found.tokens - prompt - own))
            use = CallUse(index, good, key in seen, False)
            traces.append(_Trace(use, found._replace(tokens=found.tokens - known), bar, own))
            seen.add(key)
            known |= found.tokens
    return _trace_back(traces, tokens(answer))


class _Trace(NamedTuple):
    use: CallUse
    brought: _Evidence
    """What the answer held that the model had not seen."""
    needed: int
    """Weight that proves use; see `_bar`."""
    arguments: set[str]


def _trace_back(traces: Sequence[_Trace], wanted: set[str]) -> list[CallUse]:
    """Go from the last call to the first: what contributes adds its arguments to what is wanted of earlier steps."""
    uses = [trace.use for trace in traces]
    pending: set[str] = set()
    step = None
    for index in range(len(traces) - 1, -1, -1):
        use, brought, needed, arguments = traces[index]
        if use.step != step:  # calls of one step cannot feed each other
            wanted, pending, step = wanted | pending, set(), use.step
        if not use.repeated and needed and _reaches(brought._replace(tokens=brought.tokens & wanted), needed):
            uses[index] = replace(use, used=True)
            pending |= arguments
    return uses


def _bar(evidence: _Evidence) -> int:
    """Weight that proves use: 3, or all there is if less; -1 where any token does; 0 where nothing can."""
    total = 0
    for token in evidence.tokens:
        total += _NEEDED if token in evidence.names else _weight(token)
        if total >= _NEEDED:
            return _NEEDED
    return total or (-1 if 0 < len(evidence.tokens) <= 2 else 0)


def _reaches(evidence: _Evidence, needed: int) -> bool:
    if needed < 0:
        return bool(evidence.tokens)
    total = 0
    for token in evidence.tokens:
        total += _NEEDED if token in evidence.names else _weight(token)
        if total >= needed:
            return True
    return False


def _prompt_tokens(trajectory: Trajectory) -> set[str]:
    """Tokens of the user's and the environment's messages; a system message lists tools, which are no answer."""
    texts = []
    for message in trajectory.messages:
        content = message.get("content")
        if message.get("role") != "system" and content is not None:
            texts.append(content if isinstance(content, str) else json.dumps(content, default=str))
    return tokens("\n".join(texts))
