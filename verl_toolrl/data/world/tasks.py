"""From needs to a whole question: the kinds of rows, and what is right for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Ask
from verl_toolrl.data.world.subjects import Subject
from verl_toolrl.data.world.talk import answer_in_text, small_talk
from verl_toolrl.trajectory import ToolCall

__all__ = ["Kind", "Task", "call_task", "talk_task", "unserved_task"]


class Kind(str, Enum):
    """What a row asks of the model."""

    ONE = "one"
    """One call; every value stands in the question."""
    PARALLEL = "parallel"
    """Several calls that do not depend on each other."""
    LOOKUP = "lookup"
    """One call; a value must be looked up among several facts in the text."""
    COMPUTED = "computed"
    """One call; a value must be worked out."""
    TALK = "talk"
    """No call is needed: small talk, or the answer stands in the text."""
    MISSING = "missing"
    """A call would be needed, and no tool on the list fits."""

    @property
    def has_calls(self) -> bool:
        """Whether the right answer is a call."""
        return self not in (Kind.TALK, Kind.MISSING)


@dataclass(frozen=True)
class Task:
    """One question and what is right."""

    kind: Kind
    question: str
    """What the user says."""
    calls: tuple[ToolCall, ...] = ()
    """The right calls, in the order of the question."""
    answer: str | None = None
    """A right answer where no call is; others may be as good."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """State name -> keywords under which the calls work."""
    new_wording: bool = False
    """Whether it is said in words that training never shows."""


_JOINED = (
    "{} Also: {}",
    "{} {}",
    "Two things. {} {}",
    "{} And another thing: {}",
    "{} At the same time: {}",
)
"""Ways to say two needs at once; the last is kept for held-out rows."""
_JOINED_MORE = ("{}", "I need several things. {}", "Please do all of this. {}")


def call_task(kind: Kind, subjects: Sequence[Subject], draw: Random, *, held_out: bool) -> Task | None:
    """Draw a task with calls; None if this draw leads to none.

    Args:
        kind: A kind that has calls.
        subjects: What is wanted, one an ask; several for `parallel`.
        draw: Source of chance.
        held_out: Whether wordings that training never shows may be used.
    """
    if kind is Kind.LOOKUP:
        found = [subjects[0].lookup(draw)]
    elif kind is Kind.COMPUTED:
        found = [subjects[0].computed(draw)]
    else:
        found = [subject.ask(draw, held_out=held_out) for subject in subjects]
    asks = [ask for ask in found if ask is not None]
    if not asks or _entangled(asks):
        return None
    state: dict[str, Any] = {}
    for ask in asks:
        state = _merged(state, ask.state)
    calls = tuple(ToolCall(ask.tool, dict(ask.arguments)) for ask in asks)
    task = Task(kind, asks[0].text, calls, state=state, new_wording=any(ask.new_wording for ask in asks))
    if len(asks) == 1:
        return task
    texts = [ask.text for ask in asks]
    if len(texts) == 2:
        way = draw.randrange(len(_JOINED) - (not held_out))
        is_new = way == len(_JOINED) - 1
        return replace(task, question=_JOINED[way].format(*texts), new_wording=task.new_wording or is_new)
    return replace(task, question=draw.choice(_JOINED_MORE).format(" ".join(texts)))


def _entangled(asks: Sequence[Ask]) -> bool:
    """Whether two asks speak of the same thing (one day, one item), so that one call could disturb the other."""
    seen: set[str] = set()
    for ask in asks:
        texts = {value for value in ask.arguments.values() if isinstance(value, str)} or {ask.tool}
        if texts & seen:
            return True
        seen |= texts
    return False


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge states: mappings by key, lists one after the other."""
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(old, value)
        else:
            merged[key] = [*old, *value] if isinstance(old, list) and isinstance(value, list) else value
    return merged


def talk_task(draw: Random) -> Task:
    """Draw a task that needs no tool."""
    text, answer = (small_talk if draw.random() < 0.35 else answer_in_text)(draw)
    return Task(Kind.TALK, text, answer=answer)


def unserved_task(text: str, *, new_wording: bool = False) -> Task:
    """Return the task of a wish that no tool on the list grants."""
    return Task(Kind.MISSING, text, answer="I have no tool that can do this.", new_wording=new_wording)
