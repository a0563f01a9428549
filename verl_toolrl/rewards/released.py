"""The scorer that the authors of ToolRL released, to the last bit, with its switches as options.

Source: qiancheng0/ToolRL@8cee13e, verl/utils/reward_score/rlla.py (Qian et al. 2025, arXiv:2504.13958). Its bugs are
part of it: only the first block counts, one bad line costs everything, a greedy pairing in the order of the ground
truth, and a ground truth without calls gives correctness 0 whatever is called, so that a call costs the point for
format at most, and inside the thought or the response text nothing. What differs: the switches are options instead of
environment variables, nothing is printed, a ground truth that the original fails on raises `DatasetError`, and the
regular expressions, which cost quadratic time on hostile text, are replaced by searches that accept the same texts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rewards.base import Reward
from verl_toolrl.rewards.templates import check_family, strip_template

__all__ = ["COMPONENTS", "UNREADABLE", "ReleasedReward", "first_block", "loads", "released_ground_truth"]

_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
COMPONENTS = ("format", "correctness", "length")
_SCHEDULE_STEPS = 150
_SWITCH_STEP = 30
_TARGET_WORDS = 512

# What reading a prediction or comparing it can raise: bad JSON (ValueError), a line that is no object (TypeError,
# AttributeError, KeyError), an unhashable name (TypeError), nesting (RecursionError). The original catches everything.
UNREADABLE = (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError)


@dataclass(frozen=True)
class ReleasedReward:
    """`toolrl` in mode `released`: components format, correctness and length; the score is their sum."""

    equal_max: bool = False
    """CORRECTMAX1: correctness in [-1, 1] instead of [-3, 3]."""
    two_stage: bool = False
    """MAX1STEP30MAX3: correctness divided by 3 before step 30, format by 2 from then on."""
    dynamic_scale: bool = False
    """SCHEDULEREWARD: both ranges move linearly over 150 steps."""
    length: bool = False
    """WITHLENGTH: adds the words of the last thought / 512, at most 1."""
    dynamic_length: bool = False
    """SCHEDULELENGTH: the target grows from 384 words by 256 per 105 steps. Without `length` it changes nothing, which
    the original accepts and `verl-toolrl recipes check` mentions."""
    finegrained: bool = False
    """REFINEDREWARD: names and keys must be equal as ordered lists."""
    intermediate: bool = False
    """INTERMEDIATEREWARD: a call is right as a whole or not at all."""
    coarse: bool = False
    """COARSEREWARD: all calls right and in order, or the minimum."""
    chat_family: str = "none"
    """Template to cut away: none (the response alone), qwen or llama (prompt and response, special tokens kept)."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name != "chat_family" and not isinstance(value, bool):
                raise ConfigError(f"toolrl (released): {option.name} must be true or false, got {value!r}")
        check_family("toolrl (released)", self.chat_family)

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response; `tools` and `total_steps` are not used by the original."""
        if not isinstance(response, str):
            raise ConfigError(f"toolrl (released): response must be text, got {type(response).__name__}")
        text = strip_template(response, self.chat_family)
        truth = released_ground_truth(ground_truth)
        format_low, format_high, low, high = self._ranges(step)
        format_score = format_high if _well_formed(text, ground_truth) else format_low
        correctness = 0.0 if truth is None else self._correctness(text, truth, low, high)
        length = self._length(text, step) if self.length else 0.0
        return Reward(
            format_score + correctness + length,
            {"format": format_score, "correctness": correctness, "length": length},
        )

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components."""
        return COMPONENTS

    @property
    def without_effect(self) -> dict[str, str]:
        """Switches that are on and change nothing, as in the original, each with what it needs to change something."""
        found = {"dynamic_length": "length: true"} if self.dynamic_length and not self.length else {}
        if self.coarse:  # decides before names and parameters are looked at
            found.update({name: "coarse: false" for name in ("finegrained", "intermediate") if getattr(self, name)})
        return found

    def unscheduled(self) -> ReleasedReward:
        """The same reward with the switches off that depend on the step."""
        return replace(self, two_stage=False, dynamic_scale=False, dynamic_length=False)

    def _ranges(self, step: int) -> tuple[float, float, float, float]:
        format_low, format_high = 0.0, 1.0
        low, high = (-1.0, 1.0) if self.equal_max else (-3.0, 3.0)
        if self.two_stage:
            if step < _SWITCH_STEP:
                low, high = low / 3, high / 3
            else:
                format_low, format_high = format_low / 2, format_high / 2
        if self.dynamic_scale:
            # The lower end of format moves at a rate of (2 + low), so it stops at -1 half way; the clamps of
            # correctness are one-sided. With equal_max the range therefore closes at step 300 and is inverted beyond.
            format_high = max(1.0, 2 - (2 - format_high) * step / _SCHEDULE_STEPS)
            format_low = min(-1.0, -2 + (2 + format_low) * step / _SCHEDULE_STEPS)
            high = min(3.0, (high - 2) * step / _SCHEDULE_STEPS + 2)
            low = max(-3.0, (low + 2) * step / _SCHEDULE_STEPS - 2)
        return format_low, format_high, low, high

    def _correctness(self, text: str, truth: _Truth, low: float, high: float) -> float:
        if "<tool_call>" not in text or "</tool_call>" not in text:
            return low
        try:
            calls = [
                truth.by_line[line] if line in truth.by_line else loads(line) for line in first_block(text).split("\n")
            ]
            if truth.calls == calls:
                return high
            if self.coarse:
                return low
            return self._partial(truth.calls, calls, low, high)
        except UNREADABLE:
            return low

    def _partial(self, truth: Sequence[Any], calls: Sequence[Any], low: float, high: float) -> float:
        score = self._overlap([call["name"] for call in truth], [call["name"] for call in calls])
        maximum = 1.0
        used: set[int] = set()
        for wanted in truth:
            parameters = wanted["parameters"]
            maximum += 1.0 if self.intermediate else 1.0 + len(parameters)
            best, best_index = 0.0, -1
            for index, call in enumerate(calls):
                if index in used or call["name"] != wanted["name"]:
                    continue
                if self.intermediate:
                    points = 1.0 if call == wanted else 0.0
                else:
                    points = self._parameters(parameters, call["parameters"])
                if points > best:
                    best, best_index = points, index
                if self.intermediate and best:
                    break
            if best_index >= 0:
                used.add(best_index)
                score += best
        return (high - low) * score / maximum + low

    def _parameters(self, wanted: Any, given: Any) -> float:
        keys = self._overlap(list(wanted.keys()), list(given.keys()))
        return keys + sum(1.0 for key, value in wanted.items() if key in given and given[key] == value)

    def _overlap(self, first: list[Any], second: list[Any]) -> float:
        """Intersection over union of two multisets; with `finegrained`, 1 for equal lists and else 0."""
        if first == second:
            return 1.0
        if self.finegrained or not first or not second:
            return 0.0
        keys, other_keys = set(first), set(second)
        if len(keys) == len(first) or len(other_keys) == len(second):
            # Without repetition on one side, no item is shared more than once.
            shared = len(keys & other_keys)
        else:
            counts, others = Counter(first), Counter(second)
            shared = sum(min(counts[key], others[key]) for key in keys & other_keys)
        return shared / (len(first) + len(second) - shared)

    def _length(self, text: str, step: int) -> float:
        if "<think>" not in text or "</think>" not in text:
            return 0.0
        target = 384 + 256 * step / 105 if self.dynamic_length else _TARGET_WORDS
        start = text.rfind("<think>") + len("<think>")
        end = text.find("</think>", start)
        words = len(text[start : end if end >= 0 else None].split())
        return min(round(words / target, 2), 1.0)


@dataclass(frozen=True)
class _Truth:
    calls: list[Any]
    """The decoded lines, as the original has them."""
    by_line: dict[str, Any]
    """Line -> decoded line: a prediction that repeats a line need not be decoded again."""


def released_ground_truth(ground_truth: Any) -> _Truth | None:
    """Read a ground truth as the original does; None where it holds no call.

    Raises:
        DatasetError: Where the original raises: a line between the first `<tool_call>` and the next `</tool_call>`
        that is
            not JSON. Other faults (no `parameters`) make the original give its minimum, and so do we.
    """
    if not isinstance(ground_truth, str):
        raise DatasetError(f"ground_truth must be text in ToolRL's format, got {type(ground_truth).__name__}")
    return _read_ground_truth(ground_truth)


@lru_cache(maxsize=16384)
def _read_ground_truth(ground_truth: str) -> _Truth | None:
    if "<tool_call>" not in ground_truth:
        return None
    lines = first_block(ground_truth).split("\n")
    calls = []
    for number, line in enumerate(lines, 1):
        try:
            calls.append(json.loads(line))
        except (ValueError, RecursionError) as err:
            raise DatasetError(
                f"ground_truth: line {number} of the first <tool_call> block is not JSON ({err}): {line[:80]!r}"
            ) from err
    return _Truth(calls, dict(zip(lines, calls)))


def loads(line: str) -> Any:
    """`json.loads`, without its overhead for a line that is one value from the first to the last character."""
    if line[:1] == "{":
        try:
            value, end = _scan(line, 0)
        except StopIteration:
            return json.loads(line)
        if end == len(line):
            return value
    return json.loads(line)


def first_block(text: str) -> str:
    start = text.index("<tool_call>") + len("<tool_call>")
    # The original splits at every further <tool_call> first.
    again = text.find("<tool_call>", start)
    end = text.find("</tool_call>", start, again if again >= 0 else len(text))
    return text[start : end if end >= 0 else again if again >= 0 else None].strip()


def _well_formed(text: str, ground_truth: str) -> bool:
    """Whether the layout fits the tags that the text of the ground truth holds.

    The original matches lazy patterns such as `^<think>.*?</think>\\n<tool_call>\\n.*?\\n</tool_call>$`. A text fits
    such a pattern exactly if its fixed pieces occur in order without overlap, and taking each at its first place
    leaves the most room for the next.
    """
    calls, response = "<tool_call>" in ground_truth, "<response>" in ground_truth
    tags = ["<tool_call>", "</tool_call>"] * calls + ["<response>", "</response>"] * response
    for tag in tags:
        if text.count(tag) != 1:
            return False
    if calls and response:
        middle: tuple[str, ...] = ("</think>\n<tool_call>\n", "\n</tool_call>\n<response>")
    elif calls:
        middle = ("</think>\n<tool_call>\n",)
    else:
        middle = ("</think>\n<response>",) if response else ()
    end = "</response>" if response else "\n</tool_call>" if calls else "</think>"
    if not text.startswith("<think>") or not text.endswith(end):
        return False
    position = len("<think>")
    for piece in middle:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return position <= len(text) - len(end)
