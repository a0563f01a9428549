"""What a practitioner watches while a model learns to call tools, the same for every reward.

Each name is a number of one response; its mean over a batch is a share of the responses, or a number a response. The
names are the same for every response, step and run, whatever the reward is.

    acc                    the calls are those of the ground truth, as a multiset, under typed equality, and nothing
                           else was written that looks like a call; whether the layout is right is not asked
    layout                 the whole response is in the dialect: nothing repaired, nothing left over
    calls/count            calls written, readable or not
    calls/wanted           the ground truth has calls (the complement of what `needless` can reach)
    calls/tools_known      the row says which tools are on offer; without, unknown_tool and wrong_type are 0
    calls/unreadable       a piece that looks like a call could not be read
    calls/foreign          a call is written in another dialect
    calls/repaired         a call was read although it is not written as the dialect asks
    calls/unknown_tool     a call of a tool that is not on offer
    calls/wrong_type       an argument has a type that the tool's schema does not allow
    calls/missing_argument a call lacks an argument that the ground truth gives to the same tool
    calls/extra_argument   a call has an argument that the ground truth does not give to the same tool
    calls/surplus          calls are wanted, and a tool is called more often than the ground truth calls it
    calls/needless         no call is wanted, and there is one, readable or not
    calls/missed           a tool is called less often than the ground truth calls it
    thought/words          words of the thoughts

Arguments are compared in the best pairing of the calls of the same tool. A ground truth that is no calls (the answer of
a user's own reward) compares with nothing: `acc`, missing and extra arguments, surplus, needless and missed are 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats import ParsedResponse, get_dialect, parse_response
from verl_toolrl.formats.base import Problem
from verl_toolrl.formats.tool_list import Tool, read_tools
from verl_toolrl.matching import FrozenCall, best_pairing, freeze_call, key_overlap, wrong_types
from verl_toolrl.rewards.base import check_options
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.templates import check_family, strip_template
from verl_toolrl.trajectory import ToolCall, Trajectory

__all__ = ["WATCHED", "Watcher", "make_watcher"]

WATCHED = (
    "acc",
    "layout",
    "calls/count",
    "calls/wanted",
    "calls/tools_known",
    "calls/unreadable",
    "calls/foreign",
    "calls/repaired",
    "calls/unknown_tool",
    "calls/wrong_type",
    "calls/missing_argument",
    "calls/extra_argument",
    "calls/surplus",
    "calls/needless",
    "calls/missed",
    "thought/words",
)
"""The names, in the order of `Watcher`'s answer."""


@dataclass(frozen=True)
class Watcher:
    """How responses are read; calling it gives the numbers of one response."""

    dialect: str = "toolrl"
    """How the model writes calls."""
    in_thought: bool = False
    """The prompt ends inside an open thought."""
    chat_family: str = "none"
    """Template to cut away: none, qwen or llama."""

    def __post_init__(self) -> None:
        get_dialect(self.dialect)
        check_family("watch", self.chat_family)
        if not isinstance(self.in_thought, bool):
            raise ConfigError(f"watch: in_thought must be true or false, got {self.in_thought!r}")

    def __call__(self, *, response: Any, ground_truth: Any, tools: Any = None) -> dict[str, float]:
        """Return a number for each of `WATCHED`.

        Args:
            response: What the model wrote, without the prompt.
            ground_truth: The reference, in any form that the rewards read, or a form of the user's own.
            tools: Schemas of the tools on offer; a list, JSON text, or None.

        Raises:
            DatasetError: If the tools cannot be read.
        """
        if isinstance(response, str):
            response = strip_template(response, self.chat_family)
        offered = read_tools(tools)
        parsed = parse_response(response, self.dialect, tools=offered, in_thought=self.in_thought)
        wanted = _wanted(ground_truth)
        numbers = _numbers(parsed, wanted or (), offered)
        if wanted is None:
            numbers["acc"] = numbers["calls/needless"] = 0.0
        return numbers

    def trajectory(self, trajectory: Trajectory, *, ground_truth: Any, tools: Any = None) -> dict[str, float]:
        """Return the numbers of all steps of a trajectory together, for a reward that scores trajectories.

        `acc` is not among them: whether a task of several steps is done is for the reward to say. A ground truth that
        holds no calls (an answer, a state) compares with nothing: surplus, needless, missed and the arguments are 0.
        """
        read = [parse_response(step.text, self.dialect, in_thought=self.in_thought) for step in trajectory.steps]
        wanted = _wanted(ground_truth) or ()
        parsed = ParsedResponse(
            calls=tuple(call for step in trajectory.steps for call in step.calls),
            thought="\n\n".join(part.thought or "" for part in read),
            unparsed=tuple(Problem((0, 0), reason) for step in trajectory.steps for reason in step.unparsed),
            foreign=tuple(problem for part in read for problem in part.foreign),
            repaired=tuple(problem for part in read for problem in part.repaired),
        )
        numbers = _numbers(parsed, wanted, read_tools(tools))
        numbers["layout"] = float(all(part.well_formed for part in read))
        if not wanted:
            numbers["calls/needless"] = 0.0
        del numbers["acc"]
        return numbers


def _wanted(ground_truth: Any) -> tuple[ToolCall, ...] | None:
    """Return the calls of a ground truth, None where it is something else."""
    try:
        return parse_ground_truth(ground_truth).calls
    except DatasetError:
        return None


def _numbers(parsed: ParsedResponse, wanted: Sequence[ToolCall], offered: Sequence[Tool]) -> dict[str, float]:
    """Return a number for each of `WATCHED`, in order."""
    schemas = {tool["name"]: tool["parameters"] for tool in offered}
    written = len(parsed.calls) + len(parsed.unparsed) + len(parsed.foreign)
    truth, calls = ([freeze_call(call) for call in side] for side in (wanted, parsed.calls))
    called, asked = (Counter(call.name for call in side) for side in (calls, truth))
    missing, extra = _arguments(truth, calls)
    values = (
        Counter(calls) == Counter(truth) and written == len(calls),
        parsed.well_formed,
        written,
        bool(wanted),
        bool(schemas),
        bool(parsed.unparsed),
        bool(parsed.foreign),
        bool(parsed.repaired),
        bool(schemas) and any(call.name not in schemas for call in parsed.calls),
        _has_wrong_type(parsed.calls, schemas),
        missing,
        extra,
        bool(wanted) and any(count > asked[name] for name, count in called.items()),
        not wanted and written > 0,
        any(count > called[name] for name, count in asked.items()),
        _words(parsed),
    )
    return dict(zip(WATCHED, map(float, values), strict=True))


def _has_wrong_type(calls: Sequence[ToolCall], schemas: Mapping[str, Any]) -> bool:
    return bool(schemas) and any(wrong_types(call, schemas.get(call.name))[0] for call in calls)


def _arguments(truth: Sequence[FrozenCall], calls: Sequence[FrozenCall]) -> tuple[bool, bool]:
    """Return whether an argument is missing, and whether there is one too many, in the best pairs of the same tool."""
    missing = extra = False
    for name in {call.name for call in truth}:
        wanted = [call for call in truth if call.name == name]
        # As in the reward: the first calls count, so that the pairing stays small whatever a model writes.
        given = [call for call in calls if call.name == name][: len(wanted)]
        weights = [[key_overlap(want, have) + len(want.items & have.items) for have in given] for want in wanted]
        for row, column in best_pairing(weights if given else []):
            missing = missing or bool(wanted[row].keys - given[column].keys)
            extra = extra or bool(given[column].keys - wanted[row].keys)
    return missing, extra


def _words(parsed: ParsedResponse) -> int:
    return len((parsed.thought or "").split())


def make_watcher(reward: Any, options: Mapping[str, Any]) -> Watcher:
    """Build a watcher that reads responses as a reward does.

    Args:
        reward: A configured reward; its `dialect`, `in_thought` and `chat_family` are taken over where it has them.
        options: What a recipe says under `watch`; it wins.

    Raises:
        ConfigError: If an option is unknown or has a wrong value.
    """
    names = [option.name for option in fields(Watcher)]
    check_options("reward_kwargs.watch", options, names)
    # A mix is read as its first part that says how.
    parts = [reward, *(part[1] for part in getattr(reward, "parts", ()))]
    own = next((part for part in parts if any(hasattr(part, name) for name in names)), None)
    taken = {name: getattr(own, name) for name in names if hasattr(own, name)}
    return Watcher(**{**taken, **options})
