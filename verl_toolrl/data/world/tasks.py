"""From needs to a whole question: the kinds of rows, and what is right for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Ask, Phrases, fields_of, spelled
from verl_toolrl.data.world.generic import GENERIC_WORDINGS, SchemaPhrases
from verl_toolrl.data.world.phrases import phrases_for
from verl_toolrl.data.world.pools import SPEAKERS
from verl_toolrl.data.world.talk import answer_in_text, small_talk
from verl_toolrl.toolbox import Tool
from verl_toolrl.trajectory import ToolCall

__all__ = ["Kind", "Subject", "Task", "call_task", "talk_task", "unserved_task"]


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


class Subject:
    """Draws what people want of one tool: by phrases written for it, or from its schema.

    Args:
        tool: The tool.

    Raises:
        DatasetError: If no arguments can be drawn that its schema accepts.
    """

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.phrases: Phrases | None = phrases_for(tool)
        self._generic = SchemaPhrases(tool) if self.phrases is None else None

    def ask(self, draw: Random, *, held_out: bool) -> Ask:
        """Draw a need whose values all stand in the text."""
        if self._generic is not None:
            arguments = self._generic.draw(draw)
            wording = draw.randrange(GENERIC_WORDINGS - (not held_out))
            return Ask(
                self.tool.name,
                arguments,
                self._generic.say(arguments, wording),
                new_wording=wording == GENERIC_WORDINGS - 1,
            )
        assert self.phrases is not None
        arguments = self.phrases.draw(draw)
        fitting = [wording for wording in self.phrases.wordings if fields_of(wording) == set(arguments)]
        kept = 1 if len(fitting) >= 3 else 0
        known, new = fitting[: len(fitting) - kept], fitting[len(fitting) - kept :]
        is_new = held_out and bool(new) and draw.random() < 0.5
        text = draw.choice(new if is_new else known).format(**_spelled(arguments))
        return Ask(self.tool.name, arguments, text, self._state(arguments), is_new)

    def lookup(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be found among facts about several people; None if that cannot be."""
        people = draw.sample(SPEAKERS, 3)
        if self._generic is not None:
            return self._generic_lookup(draw, people)
        assert self.phrases is not None
        if not self.phrases.lookups:
            return None
        way = draw.choice(self.phrases.lookups)
        wanted = fields_of(way.wording) - {"who"} | {way.key}
        arguments = _drawn(draw, self.phrases.draw, lambda found: set(found) == wanted)
        if arguments is None:
            return None
        fixed = (fields_of(way.fact) - {"who", "value"}) & set(arguments)
        values = [arguments[way.key]]
        while len(values) < len(people):
            other = _drawn(
                draw,
                self.phrases.draw,
                lambda found: (
                    way.key in found
                    and found[way.key] not in values
                    and all(found.get(key) == arguments[key] for key in fixed)
                ),
            )
            if other is None:
                return None
            values.append(other[way.key])
        slots = _spelled({key: value for key, value in arguments.items() if key != way.key})
        facts = [
            way.fact.format(**{**slots, "who": who, "value": spelled(value)})
            for who, value in zip(people, values, strict=True)
        ]
        question = way.wording.format(**slots, who=people[0])
        return Ask(self.tool.name, arguments, _with_facts(draw, facts, question), self._state(arguments))

    def computed(self, draw: Random) -> Ask | None:
        """Draw a need with a value that must be worked out; None if nobody wrote one and no argument is an integer."""
        if self._generic is not None:
            return self._generic_computed(draw)
        assert self.phrases is not None
        if not self.phrases.computed:
            return None
        text, arguments = draw.choice(self.phrases.computed)(draw)
        return Ask(self.tool.name, arguments, text, self._state(arguments))

    def _state(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.phrases is None or self.phrases.state is None or self.tool.state is None:
            return {}
        return {self.tool.state.name: dict(self.phrases.state(arguments))}

    def _generic_lookup(self, draw: Random, people: Sequence[str]) -> Ask | None:
        assert self._generic is not None
        arguments = self._generic.draw(draw)
        keys = [key for key, value in arguments.items() if isinstance(value, (str, int, float)) and value != ""]
        keys = [key for key in keys if not isinstance(arguments[key], bool)]
        if not keys:
            return None
        key = draw.choice(keys)
        values = [arguments[key]]
        for _ in range(50):
            value = self._generic.draw(draw).get(key)
            if value is not None and value not in values:
                values.append(value)
            if len(values) == len(people):
                break
        else:
            return None
        noun = key.replace("_", " ")
        facts = [f"The {noun} of {who} is {spelled(value)}" for who, value in zip(people, values, strict=True)]
        question = self._generic.say({**arguments, key: f"that of {people[0]}"}, draw.randrange(GENERIC_WORDINGS - 1))
        question = question.replace(f'"that of {people[0]}"', f"that of {people[0]}")
        return Ask(self.tool.name, arguments, _with_facts(draw, facts, question))

    def _generic_computed(self, draw: Random) -> Ask | None:
        assert self._generic is not None
        arguments = self._generic.draw(draw)
        keys = [key for key, value in arguments.items() if type(value) is int and value >= 4]
        if not keys:
            return None
        key = draw.choice(keys)
        part = draw.randint(1, arguments[key] - 1)
        said = f"the sum of {part} and {arguments[key] - part}"
        question = self._generic.say({**arguments, key: said}, draw.randrange(GENERIC_WORDINGS - 1))
        return Ask(self.tool.name, arguments, question.replace(f'"{said}"', said))


def _drawn(
    draw: Random, make: Callable[[Random], dict[str, Any]], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    return next((found for found in (make(draw) for _ in range(300)) if fits(found)), None)


def _spelled(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {key: spelled(value) for key, value in arguments.items()}


def _with_facts(draw: Random, facts: list[str], question: str) -> str:
    draw.shuffle(facts)
    text = ". ".join(facts)
    return f"{text}. {question}"


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
