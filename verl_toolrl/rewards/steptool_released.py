"""The rules and the annotation arithmetic that StepTool was released with, value for value.

Source: behaviour of yuyq18/StepTool@121a6ac (`annotation_by_rules.ipynb`, the CSV formatting of its trainer), rebuilt
from a description of inputs and outputs; executed vectors are in the tests. Where the released function crashed,
`strict=True` raises the same type of exception and `strict=False` returns the value of a failure (False, 0): what a
tool or a model wrote must not stop a training run.

Weak points that are kept on purpose: any answer written by `json.dumps` with an empty error is a success, even
"Error: 500" or an empty one; Contribution compares characters, so "cat" contributes to "The concert starts at ten".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from verl_toolrl.errors import ConfigError, DatasetError

__all__ = [
    "STATUS_SCORES",
    "Contribution",
    "TokenisedSample",
    "aggregate_judgements",
    "contributing",
    "longest_common_subsequence",
    "released_contribution",
    "released_success",
    "subsequence_length",
    "success_count",
    "tokenise_sample",
]

_SUCCESS_PREFIX = '{"error": "", "response": '
_ERROR_PREFIX = '{"error": "'


def released_success(content: str, *, strict: bool = False) -> bool:
    """SuccCalling of one tool message (`check_success`).

    Args:
        content: Text of the tool message, `{"error": ..., "response": ...}` as ToolBench's server writes it.
        strict: Raise what the released function raised instead of returning False.

    Raises:
        TypeError, KeyError, json.JSONDecodeError, UnboundLocalError: With `strict`, as released: a null or float
            response, no `error` key, a cut inside an escape, and text that is no JSON.
    """
    try:
        return _check_success(content)
    except (TypeError, KeyError, ValueError, UnboundLocalError, RecursionError):
        if strict:
            raise
        return False


def _check_success(content: str) -> bool:
    message: Any = None
    parsed = True
    try:
        message = json.loads(content)
    except json.JSONDecodeError:
        parsed = False
        if content.startswith(_ERROR_PREFIX) and not content.startswith(_SUCCESS_PREFIX):
            message, parsed = json.loads(content + '"}'), True  # an error text that was cut at 1024 characters
    if content.startswith(_SUCCESS_PREFIX):
        return True
    if not parsed:
        raise UnboundLocalError("released check_success has no value for text that is no JSON")
    if message["error"] != "":
        return False
    response = message["response"]
    if isinstance(response, dict):
        return response.get("status") != 400
    if isinstance(response, (list, int)):
        return True
    if isinstance(response, str):
        failed = any(word in response for word in ("wrong", "error", "is empty"))
        return not failed and not response.startswith("Please")
    raise TypeError(f"released check_success has no value for a response of type {type(response).__name__}")


def success_count(messages: Sequence[Mapping[str, Any]], *, strict: bool = False) -> tuple[int, int]:
    """Count calls and successful calls of one trajectory in chat form.

    A call is an assistant message with `tool_calls` and a message after it; of parallel calls only the first counts,
    calls of `Finish` (in any case) do not.

    Args:
        messages: Chat messages; `tool_calls[0]["function"]["name"]` is read.
        strict: As in `released_success`.

    Returns:
        (calls, successes).
    """
    calls = successes = 0
    for message, answer in zip(messages, messages[1:]):
        if not message.get("tool_calls") or message["tool_calls"][0]["function"]["name"].lower() == "finish":
            continue
        calls += 1
        successes += released_success(answer["content"], strict=strict)
    return calls, successes


class Contribution(NamedTuple):
    """How one tool answer contributes to the final answer by the authors' rule."""

    response_text: str
    """What is compared: `str()` of the decoded response, or the raw text after 26 characters when it is no JSON."""
    lcs_length: int
    """Length of the longest common subsequence of characters."""
    ratio: float | None
    """`lcs_length / len(response_text)`; None for an empty response."""
    value: int
    """1 if the ratio reaches the threshold, else 0."""


def released_contribution(
    content: str, finish_content: str, *, threshold: float = 0.3, strict: bool = False
) -> Contribution:
    """Contribution of one tool message to the final answer (`calc_contribution`).

    Args:
        content: Text of the tool message.
        finish_content: Final answer.
        threshold: Least ratio that counts.
        strict: Raise what the released function raised (no `response` key) instead of comparing nothing.

    Raises:
        KeyError, TypeError: With `strict`.
    """
    text = _response_text(content, strict)
    if not text:
        return Contribution("", 0, None, 0)
    length = subsequence_length(text, finish_content)
    ratio = length / len(text)
    return Contribution(text, length, ratio, 0 if ratio < threshold else 1)


def contributing(
    contents: Sequence[str], finish_content: str, *, threshold: float = 0.3, any_form: bool = False
) -> list[bool]:
    """`released_contribution(...).value == 1` for every tool message of a trajectory.

    The columns of the final answer are laid out once, and each comparison ends as soon as its threshold is reached or
    out of reach.
    """
    columns = _Columns(finish_content)
    found = []
    for content in contents:
        text = _response_text(content, strict=False, any_form=any_form)
        # The least length whose ratio is not below the threshold, found with the released comparison itself.
        enough = max(math.floor(threshold * len(text)), 0)
        while text and enough / len(text) < threshold:
            enough += 1
        found.append(bool(text) and columns.length(text, enough) >= enough)
    return found


def _response_text(content: str, strict: bool, any_form: bool = False) -> str:
    try:
        return str(json.loads(content)["response"])
    except (ValueError, RecursionError):  # no JSON, or a number with more digits than Python converts
        return content if any_form else content[26:]
    except (KeyError, TypeError, IndexError):
        if strict:
            raise
        return content if any_form else ""


def subsequence_length(first: str, second: str) -> int:
    """Length of the longest common subsequence of characters."""
    return _Columns(second).length(first)


def longest_common_subsequence(first: str, second: str) -> str:
    """Return the subsequence itself; among equals the released choice, dropping the last character of `second`."""
    columns = _Columns(second)
    states, state = [], columns.full
    for character in first:
        state = _advance(state, [columns[character]]) & columns.full
        states.append(state)
    found, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif states[i - 1] >> (j - 1) & 1:  # the last column adds nothing
            j -= 1
        else:
            i -= 1
    return "".join(reversed(found))


class _Columns(dict[str, int]):
    """Character -> bits of its positions in a text; the longest common subsequence of other texts with it.

    Bit-parallel (Hyyro 2004): a row of the dynamic programme is one integer with a zero bit for every column where the
    length rises, so that a row costs four operations on integers instead of a loop over the columns.
    """

    def __init__(self, text: str) -> None:
        for position, character in enumerate(text):
            self[character] = self[character] | (1 << position)
        self.width = len(text)
        self.full = (1 << len(text)) - 1

    def __missing__(self, character: str) -> int:
        self[character] = 0
        return 0

    def length(self, text: str, enough: int | None = None) -> int:
        """Return the length; with `enough`, exact below it and any lower bound from it on."""
        rows = [self[character] for character in text] if len(text) < 2 else itemgetter(*text)(self)
        if enough is None:
            return self.width - (_advance(self.full, rows) & self.full).bit_count()
        if enough > self.width:
            return 0
        state, length, at = self.full, 0, 0
        while length < enough <= length + len(rows) - at:  # a row adds one at most
            chunk = rows[at : at + max(enough - length, 32)]
            at += len(chunk)
            state = _advance(state, chunk)
            length = self.width - (state & self.full).bit_count()
        return length


def _advance(state: int, rows: Sequence[int]) -> int:
    """Take the state through rows; a carry leaves bits above the last column, which the caller cuts."""
    for row in rows:
        rising = state & row
        state = (state + rising) | (state ^ rising)
    return state


STATUS_SCORES = {"Solved": 1.0, "Unsure": 0.5, "Unsolved": 0.0}
"""Score of a judge's final status."""


def aggregate_judgements(
    succ_calling: Sequence[Sequence[float]], contribution: Sequence[Sequence[float]], status: Sequence[str]
) -> list[float]:
    """Turn k judgements of one trajectory into its step rewards.

    Steps before the last: `mean_k (SC_k + Con_k / 5) / 2`; the last: `mean_k status` with Solved 1, Unsure 0.5,
    Unsolved 0. Not released as code; inferred from the lattice of the released values (all 101 fit).

    Args:
        succ_calling: k lists, 0 or 1 a step before the last.
        contribution: k lists, 0 to 5 a step before the last.
        status: k names of `STATUS_SCORES`.

    Raises:
        DatasetError: If the lists differ in length, a score is out of range, or a status is unknown.
    """
    rounds = len(status)
    if not rounds or len(succ_calling) != rounds or len(contribution) != rounds:
        raise DatasetError(
            f"judgements: {len(succ_calling)} of succ_calling, {len(contribution)} of contribution, {rounds} of status"
        )
    steps = len(succ_calling[0])
    for k in range(rounds):
        for name, scores, top in (("succ_calling", succ_calling[k], 1), ("contribution", contribution[k], 5)):
            if len(scores) != steps:
                raise DatasetError(f"judgement {k}: {len(scores)} scores of {name} for {steps} steps")
            for score in scores:
                if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= top:
                    raise DatasetError(f"judgement {k}: {name} {score!r} is outside 0..{top}")
        if status[k] not in STATUS_SCORES:
            raise DatasetError(f"judgement {k}: status {status[k]!r}, wanted one of {', '.join(STATUS_SCORES)}")
    rewards = [
        sum((succ_calling[k][t] + contribution[k][t] / 5) / 2 for k in range(rounds)) / rounds for t in range(steps)
    ]
    return [*rewards, sum(STATUS_SCORES[name] for name in status) / rounds]


@dataclass(frozen=True)
class TokenisedSample:
    """One row of the released training data as the released trainer sees it."""

    query: list[int]
    """Tokens up to the last prompt, cut from the left."""
    response: list[int]
    """Tokens of the last response, cut from the right."""
    fragment_mask: list[int]
    """0 on prompts, 1 on responses, over query and response."""
    rewards: list[float]
    """Step rewards, rounded to float16 as released."""


def tokenise_sample(
    prompts: Sequence[str],
    responses: Sequence[str],
    rewards: Sequence[float],
    encode: Callable[[str], Sequence[int]],
    *,
    max_context_length: int = 4096,
    max_response_length: int = 1024,
) -> TokenisedSample:
    """Tokenise one row of the offline format (`formatting_func`): every fragment alone, special tokens included.

    Args:
        prompts: T prompt fragments p_0 .. p_{T-1}.
        responses: T responses r_0 .. r_{T-1}.
        rewards: T step rewards.
        encode: Tokenizer; called once a fragment, so a tokenizer that adds BOS adds it before every fragment.
        max_context_length: Tokens of p_0 r_0 .. p_{T-1} that are kept, from the right.
        max_response_length: Tokens of r_{T-1} that are kept, from the left.

    Raises:
        DatasetError: If the three lists differ in length or are empty.
        ConfigError: If a length is not positive.
    """
    if not len(prompts) == len(responses) == len(rewards) or not prompts:
        raise DatasetError(f"{len(prompts)} prompts, {len(responses)} responses and {len(rewards)} rewards")
    if max_context_length < 1 or max_response_length < 1:
        raise ConfigError(f"lengths must be positive: {max_context_length}, {max_response_length}")
    query: list[int] = []
    mask: list[int] = []
    for index, prompt in enumerate(prompts):
        for text, trained in ((prompt, 0), (responses[index], 1)) if index < len(prompts) - 1 else ((prompt, 0),):
            tokens = list(encode(text))
            query += tokens
            mask += [trained] * len(tokens)
    response = list(encode(responses[-1]))[:max_response_length]
    return TokenisedSample(
        query=query[-max_context_length:],
        response=response,
        fragment_mask=mask[-max_context_length:] + [1] * len(response),
        rewards=[struct.unpack("e", struct.pack("e", reward))[0] for reward in rewards],
    )
