"""ToolRL's reward as the paper defines it (Qian et al. 2025, arXiv:2504.13958, §3.3 and the ablations of §5).

    r_name  = |N_G ∩ N_P| / |N_G ∪ N_P|                         N: sets of tool names
    r_param = Σ |keys(G_j) ∩ keys(P_j)| / |keys(G_j) ∪ keys(P_j)|   over the pairs of the best matching; 1 if both empty
    r_value = Σ Σ 1[G_j[k] = P_j[k]]
    R_correct = 6 R_max / S_max − 3,  S_max = 1 + |G| + Σ |keys(G_j)|

What the paper leaves open is as in the released code: unreadable output earns the minimum, a ground truth without calls
earns 0, equality is Python's. `pairs: any` lets calls of different tools be paired. Schedules run over the real length
of the run, and length is counted in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.matching import FrozenCall, best_pairing, freeze_arguments, freeze_call, key_overlap
from verl_toolrl.rewards.base import Reward
from verl_toolrl.rewards.ground_truth import GroundTruth, parse_ground_truth
from verl_toolrl.rewards.released import COMPONENTS, UNREADABLE, first_block, loads
from verl_toolrl.rewards.templates import check_family, strip_template
from verl_toolrl.trajectory import ToolCall

__all__ = ["PaperReward"]

_CHOICES = {
    "pairs": ("same_name", "any"),
    "scale": ("original", "equal_max", "two_stage", "dynamic"),
    "granularity": ("original", "finegrained", "intermediate", "coarse"),
    "length": ("none", "fixed", "dynamic"),
}


@dataclass(frozen=True)
class PaperReward:
    """`toolrl` in mode `paper`: components format, correctness and length; the score is their sum."""

    pairs: str = "same_name"
    """Which calls may be paired: same_name, or any."""
    scale: str = "original"
    """Ranges (§5.2): original, equal_max, two_stage or dynamic."""
    granularity: str = "original"
    """How fine correctness is (§5.3): original, finegrained, intermediate or coarse."""
    length: str = "none"
    """Length reward (§5.1): none, fixed, or dynamic (the target doubles over the run)."""
    length_target: int = 512
    """Words of a thought that earn the whole length reward; refused with length none, which counts no words."""
    switch_step: int = 30
    """First step of the second stage; refused with another scale than two_stage."""
    chat_family: str = "none"
    """Template to cut away: none, qwen or llama."""

    def __post_init__(self) -> None:
        for option, known in _CHOICES.items():
            value = getattr(self, option)
            if value not in known:
                hint = nearest(value, known)
                raise ConfigError(f"toolrl (paper): unknown {option} {value!r}{hint}; known: {', '.join(known)}")
        for option in ("length_target", "switch_step"):
            value = getattr(self, option)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"toolrl (paper): {option} must be a whole number from 1 on, got {value!r}")
        if self.pairs == "any" and self.granularity == "coarse":
            raise ConfigError("toolrl (paper): pairs 'any' and granularity 'coarse' contradict: coarse pairs nothing")
        if self.length == "none":
            self._refuse_without_effect("length_target", "length", "fixed or dynamic")
        if self.scale != "two_stage":
            self._refuse_without_effect("switch_step", "scale", "two_stage")
        check_family("toolrl (paper)", self.chat_family)

    def _refuse_without_effect(self, option: str, needs: str, wanted: str) -> None:
        """Refuse another value than the default's of an option that nothing reads."""
        given = getattr(self, option)
        if given != getattr(type(self), option):
            found = getattr(self, needs)
            raise ConfigError(
                f"toolrl (paper): {option} {given} has no effect with {needs} {found!r}; it needs {needs}: {wanted}"
            )

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response; `tools` is not used."""
        if not isinstance(response, str):
            raise ConfigError(f"toolrl (paper): response must be text, got {type(response).__name__}")
        text = strip_template(response, self.chat_family)
        truth = parse_ground_truth(ground_truth)
        format_low, format_high, low, high = self._ranges(step, total_steps)
        format_score = format_high if _fields_in_order(text, truth) else format_low
        correctness = (high - low) * self._share(text, truth.calls) + low if truth.calls else 0.0
        length = self._length(text, step, total_steps)
        components = {"format": format_score, "correctness": correctness, "length": length}
        return Reward(format_score + correctness + length, components)

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components."""
        return COMPONENTS

    def unscheduled(self) -> PaperReward:
        """The same reward with the ranges and the length target that hold without a schedule."""
        return replace(
            self,
            scale=self.scale if self.scale == "equal_max" else "original",
            switch_step=PaperReward.switch_step,  # another would be refused
            length="fixed" if self.length == "dynamic" else self.length,
        )

    def _ranges(self, step: int, total_steps: int | None) -> tuple[float, float, float, float]:
        if self.scale == "equal_max":
            return 0.0, 1.0, -1.0, 1.0
        if self.scale == "two_stage":
            return (0.0, 1.0, -1.0, 1.0) if step < self.switch_step else (0.0, 0.5, -3.0, 3.0)
        if self.scale == "dynamic":
            share = self._progress(step, total_steps)
            return -2 + share, 2 - share, -2 - share, 2 + share
        return 0.0, 1.0, -3.0, 3.0

    def _progress(self, step: int, total_steps: int | None) -> float:
        if not total_steps:
            raise ConfigError("toolrl (paper): dynamic needs the length of the run; give total_steps")
        if not 0 <= step <= total_steps:
            raise ConfigError(f"toolrl (paper): step {step} lies outside the run of {total_steps} steps")
        return step / total_steps

    def _share(self, text: str, truth: Sequence[ToolCall]) -> float:
        """R_max / S_max, in [0, 1]."""
        if "<tool_call>" not in text or "</tool_call>" not in text:
            return 0.0
        try:
            calls = [loads(line) for line in first_block(text).split("\n")]
            return self._match(truth, calls)
        except UNREADABLE:
            return 0.0

    def _match(self, truth: Sequence[ToolCall], calls: Sequence[Any]) -> float:
        wanted = [freeze_call(call, typed=False) for call in truth]
        names, others = {call.name for call in wanted}, {call["name"] for call in calls}
        # As in the released code, a call is examined only where it may be paired.
        examined = [call for call in calls if self.pairs == "any" or call["name"] in names]
        given = [freeze_arguments(call["name"], call["parameters"], typed=False) for call in examined]
        if self.granularity == "coarse":
            return float(names == others and set(wanted) == set(given))
        if self.granularity == "finegrained":
            name_score = float(names == others)
        else:
            name_score = len(names & others) / len(names | others)
        total = name_score + self._pairs(wanted, given)
        if self.granularity == "intermediate":
            return total / (1 + len(wanted))
        return total / (1 + len(wanted) + sum(len(call.keys) for call in wanted))

    def _pairs(self, wanted: Sequence[FrozenCall], given: Sequence[FrozenCall]) -> float:
        """Total of the best matching. Pairs that are not allowed weigh 0, which is the same as no pair."""
        weights = [
            [self._pair(want, have) if self.pairs == "any" or want.name == have.name else 0.0 for have in given]
            for want in wanted
        ]
        return math.fsum(weights[row][column] for row, column in best_pairing(weights))

    def _pair(self, want: FrozenCall, have: FrozenCall) -> float:
        if self.granularity == "intermediate":
            return float(want.items == have.items)
        keys = float(want.keys == have.keys) if self.granularity == "finegrained" else key_overlap(want, have)
        return keys + len(want.items & have.items)

    def _length(self, text: str, step: int, total_steps: int | None) -> float:
        if self.length == "none":
            return 0.0
        start = text.rfind("<think>")
        end = text.find("</think>", start)
        if start < 0 or end < 0:
            return 0.0
        target = float(self.length_target)
        if self.length == "dynamic":
            target *= 1 + self._progress(step, total_steps)
        return min(len(text[start + len("<think>") : end].split()) / target, 1.0)


def _fields_in_order(text: str, truth: GroundTruth) -> bool:
    """Whether the fields of the ground truth appear in the right order: thought, calls, response."""
    tags = ["<think>", "</think>"]
    if truth.calls:
        tags += ["<tool_call>", "</tool_call>"]
    if truth.response is not None:
        tags += ["<response>", "</response>"]
    position = 0
    for tag in tags:
        position = text.find(tag, position)
        if position < 0:
            return False
        position += len(tag)
    return True
