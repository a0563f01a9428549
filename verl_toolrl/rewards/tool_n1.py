"""Binary reward of Tool-N1 (Zhang et al. 2025, arXiv:2505.00024): all right, or nothing.

1 if the response keeps the format (a thought, then calls in the dialect with nothing repaired or left over) and its
calls equal those of the ground truth as a multiset, under typed equality; else 0. Where the ground truth has no calls,
the response must have none. The paper's format needs a thought; `require_thought: false` drops that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import get_dialect, parse_response
from verl_toolrl.formats.tool_list import read_tools
from verl_toolrl.matching import freeze_call
from verl_toolrl.rewards.base import Reward, register_reward
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.templates import check_family, strip_template

__all__ = ["ToolN1Reward"]


@register_reward("tool_n1")
@dataclass(frozen=True)
class ToolN1Reward:
    """One component, `correctness`, 0 or 1; the metrics tell format and calls apart."""

    dialect: str = "hermes"
    """How the model writes calls."""
    require_thought: bool = True
    """Whether the format asks for a thought."""
    in_thought: bool = False
    """The prompt ends inside an open thought."""
    chat_family: str = "none"
    """Template to cut away: none, qwen or llama."""

    def __post_init__(self) -> None:
        get_dialect(self.dialect)
        check_family("tool_n1", self.chat_family)
        for option in ("require_thought", "in_thought"):
            if not isinstance(getattr(self, option), bool):
                raise ConfigError(f"tool_n1: {option} must be true or false, got {getattr(self, option)!r}")

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components."""
        return ("correctness",)

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response; see `RewardFunction`."""
        if isinstance(response, str):
            response = strip_template(response, self.chat_family)
        truth = parse_ground_truth(ground_truth)
        parsed = parse_response(response, self.dialect, tools=read_tools(tools), in_thought=self.in_thought)
        well_formed = parsed.well_formed and (parsed.thought is not None or not self.require_thought)
        equal = Counter(map(freeze_call, parsed.calls)) == Counter(map(freeze_call, truth.calls))
        equal = equal and not parsed.unparsed and not parsed.foreign
        score = float(well_formed and equal)
        return Reward(score, {"correctness": score}, {"format": float(well_formed), "calls_equal": float(equal)})
