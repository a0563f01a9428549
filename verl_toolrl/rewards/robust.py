"""ToolRL's reward as we train with it: `toolrl` in mode `robust`.

G are the calls of the ground truth, P the readable calls of the response in the order written.

- Only calls of the same tool pair. If a tool is called more often than G calls it, its first calls count.
- *Surplus* are the calls beyond that, calls of tools that G does not call, pieces that look like calls and cannot be
  read, and calls in another dialect than the recipe's.
- A pair earns 1 + |keys in both| / |keys in either| (1 if both empty) + number of equal values.
- M is the best total over one-to-one pairings, u the number of surplus calls, S the total of G with itself.

    correctness = low + (high − low) · max(0, M − cost · u) / S

If G is empty: `high` where the response holds no call, readable or not, else `low`. So a call too many always costs,
the order of calls never does, and a partly right call beats silence. Schemas serve to compare (`compare: schema`) and
to report wrong types and unknown names, which cost nothing beyond the lost value.

`format` is 1 only if the whole response is in the recipe's dialect, with nothing repaired and nothing left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.formats import ParsedResponse, get_dialect, parse_response
from verl_toolrl.formats.tool_list import read_tools
from verl_toolrl.matching import FrozenCall, best_pairing, freeze_call, key_overlap, normalise_call, wrong_types
from verl_toolrl.rewards.base import Reward
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.released import COMPONENTS
from verl_toolrl.rewards.schedules import Schedule, parse_schedule
from verl_toolrl.rewards.templates import check_family, strip_template
from verl_toolrl.trajectory import ToolCall

__all__ = ["COMPONENTS", "RobustReward"]

_COMPARE = ("typed", "schema")
_TARGET_WORDS = 512


@dataclass(frozen=True)
class RobustReward:
    """`toolrl` in mode `robust`: components format, correctness and length; the score is their sum."""

    dialect: str = "toolrl"
    """How the model writes calls (`verl_toolrl.formats.DIALECTS`)."""
    low: float = -3.0
    """Correctness of a response that earns nothing."""
    high: float = 3.0
    """Correctness of the ground truth."""
    cost: float = 1.0
    """What a surplus call costs, in units of a pair's base of 1; at least 1."""
    compare: str = "typed"
    """typed: equality of JSON; schema: after normalising both sides with the tools' JSON Schema."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Factor of a component, a number or a schedule. format and correctness default to 1, length to 0."""
    length_target: Any = _TARGET_WORDS
    """Words of a thought that earn the whole length component, a number or a schedule; refused where the component's
    weight is 0 in every step."""
    in_thought: bool = False
    """The prompt ends inside an open thought (the chat template writes `<think>`)."""
    chat_family: str = "none"
    """Template to cut away: none, qwen or llama."""

    def __post_init__(self) -> None:
        get_dialect(self.dialect)
        check_family("toolrl (robust)", self.chat_family)
        for option in ("low", "high", "cost"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"toolrl (robust): {option} must be a finite number, got {value!r}")
        if self.low >= self.high:
            raise ConfigError(f"toolrl (robust): low ({self.low}) must lie below high ({self.high})")
        if self.cost < 1:
            raise ConfigError(f"toolrl (robust): cost must be at least 1, got {self.cost}: a surplus call must not pay")
        if self.compare not in _COMPARE:
            hint = nearest(self.compare, _COMPARE)
            raise ConfigError(f"toolrl (robust): unknown compare {self.compare!r}{hint}; known: {', '.join(_COMPARE)}")
        if not isinstance(self.in_thought, bool):
            raise ConfigError(f"toolrl (robust): in_thought must be true or false, got {self.in_thought!r}")
        schedules = component_weights(
            "toolrl (robust)", self.weights, {"format": 1.0, "correctness": 1.0, "length": 0.0}
        )
        target = parse_schedule(self.length_target, "toolrl (robust): length_target")
        if target.bounds[0] <= 0:
            raise ConfigError(f"toolrl (robust): length_target must be above 0, got {self.length_target!r}")
        if schedules["length"].bounds == (0, 0) and target != parse_schedule(_TARGET_WORDS):
            raise ConfigError(
                f"toolrl (robust): length_target {self.length_target!r} has no effect with weights.length 0; "
                "it needs weights: {length: ...}, a number other than 0 or a schedule"
            )
        constant = all(schedule.is_constant for schedule in schedules.values())
        object.__setattr__(self, "_weights", schedules)
        object.__setattr__(self, "_factors", {n: s.at(0) for n, s in schedules.items()} if constant else None)
        object.__setattr__(self, "_target", target)

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Score one response; see `RewardFunction`."""
        if isinstance(response, str):
            response = strip_template(response, self.chat_family)
        offered = read_tools(tools)
        parsed = parse_response(response, self.dialect, tools=offered, in_thought=self.in_thought)
        schemas = {tool["name"]: tool["parameters"] for tool in offered}
        truth = self._truth(ground_truth, schemas)
        correctness, surplus = self._correctness(parsed, truth, schemas if self.compare == "schema" else {})
        factors = self._factors_at(step, total_steps)
        length = 0.0
        if factors["length"]:
            target = self._target.at(step, total_steps)  # type: ignore[attr-defined]
            length = min(len((parsed.thought or "").split()) / target, 1.0)
        components = {
            "format": factors["format"] * parsed.well_formed,
            "correctness": factors["correctness"] * correctness,
            "length": factors["length"] * length,
        }
        return Reward(math.fsum(components.values()), components, _metrics(parsed, surplus, schemas))

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components."""
        return COMPONENTS

    def unscheduled(self) -> RobustReward:
        """The same reward with the last weights and the last length target that its schedules list."""
        weights: dict[str, Schedule] = self._weights  # type: ignore[attr-defined]
        target: Schedule = self._target  # type: ignore[attr-defined]
        if target.is_constant and all(schedule.is_constant for schedule in weights.values()):
            return self
        ends = {name: schedule.end for name, schedule in weights.items()}
        # A target beside a weight that ends at 0 would be refused.
        return replace(self, weights=ends, length_target=target.end if ends["length"] else _TARGET_WORDS)

    def _factors_at(self, step: int, total_steps: int | None) -> dict[str, float]:
        constant: dict[str, float] | None = self._factors  # type: ignore[attr-defined]
        if constant is not None:
            return constant
        weights: dict[str, Schedule] = self._weights  # type: ignore[attr-defined]
        return {name: schedule.at(step, total_steps) for name, schedule in weights.items()}

    def _truth(self, ground_truth: Any, schemas: Mapping[str, Any]) -> _Truth:
        if isinstance(ground_truth, str) and self.compare == "typed":
            return _typed_truth(ground_truth)
        calls = parse_ground_truth(ground_truth).calls
        if self.compare == "schema":
            calls = tuple(normalise_call(call, schemas.get(call.name)) for call in calls)
        return _Truth.of(calls)

    def _correctness(self, parsed: ParsedResponse, truth: _Truth, schemas: Mapping[str, Any]) -> tuple[float, int]:
        """Return the correctness and the number of surplus calls."""
        surplus = len(parsed.unparsed) + len(parsed.foreign)
        if not truth.total:
            surplus += len(parsed.calls)
            return (self.low if surplus else self.high), surplus
        counted: dict[str, list[FrozenCall]] = {}
        for call in parsed.calls:
            wanted = truth.by_tool.get(call.name)
            given = counted.setdefault(call.name, [])
            if wanted is None or len(given) == len(wanted):
                surplus += 1
            else:
                given.append(freeze_call(normalise_call(call, schemas.get(call.name)) if schemas else call))
        matched = math.fsum(pair_total(truth.by_tool[name], given) for name, given in counted.items() if given)
        share = max(0.0, matched - self.cost * surplus) / truth.total
        return self.low + (self.high - self.low) * share, surplus


@dataclass(frozen=True)
class _Truth:
    by_tool: dict[str, list[FrozenCall]]
    total: float
    """S: what the ground truth earns with itself; 0 if it has no calls."""

    @classmethod
    def of(cls, calls: Sequence[ToolCall]) -> _Truth:
        by_tool: dict[str, list[FrozenCall]] = {}
        for call in calls:
            by_tool.setdefault(call.name, []).append(freeze_call(call))
        return cls(by_tool, float(sum(2 + len(call.arguments) for call in calls)))


@lru_cache(maxsize=16384)
def _typed_truth(ground_truth: str) -> _Truth:
    return _Truth.of(parse_ground_truth(ground_truth).calls)


def pair_total(wanted: Sequence[FrozenCall], given: Sequence[FrozenCall]) -> float:
    """Return the best total of one-to-one pairs between calls of one tool.

    Equal calls are paired first. That is never worse: with s(a, b) = 1 + overlap of keys + number of equal items,
    s(x, p) + s(g, x) <= s(x, x) + s(g, p), since 1 − overlap is a metric and |X∩P| + |X∩G| <= |X| + |P∩G|.
    """
    if len(wanted) == len(given) == 1:
        return _pair(wanted[0], given[0])
    rest, left, full = list(given), [], []
    for call in wanted:
        if call in rest:
            rest.remove(call)
            full.append(2.0 + len(call.keys))
        else:
            left.append(call)
    weights = [[_pair(want, have) for have in rest] for want in left] if rest else []
    return math.fsum([*full, *(weights[row][column] for row, column in best_pairing(weights))])


def _pair(want: FrozenCall, have: FrozenCall) -> float:
    return 1.0 + key_overlap(want, have) + len(want.items & have.items)


def _metrics(parsed: ParsedResponse, surplus: int, schemas: Mapping[str, Any]) -> dict[str, float]:
    wrong = unknown = 0
    if schemas:
        for call in parsed.calls:
            unknown += call.name not in schemas
            wrong_here, unknown_here = wrong_types(call, schemas.get(call.name))
            wrong, unknown = wrong + wrong_here, unknown + unknown_here
    return {
        "calls": float(len(parsed.calls)),
        "surplus": float(surplus),
        "unreadable": float(len(parsed.unparsed)),
        "foreign": float(len(parsed.foreign)),
        "repaired": float(len(parsed.repaired)),
        "wrong_types": float(wrong),
        "unknown_names": float(unknown),
    }


def component_weights(where: str, weights: Any, defaults: Mapping[str, float]) -> dict[str, Schedule]:
    """Read the weights of components: numbers or schedules.

    Raises:
        ConfigError: If a component is unknown or a weight cannot be read.
    """
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: weights must map components to numbers or schedules, got {weights!r}")
    for name in weights:
        if name not in defaults:
            hint = nearest(name, defaults)
            raise ConfigError(f"{where}: unknown component {name!r} in weights{hint}; known: {', '.join(defaults)}")
    return {
        name: parse_schedule(weights.get(name, default), f"{where}: weights.{name}")
        for name, default in defaults.items()
    }
