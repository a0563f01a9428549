"""A world of rows: all splits of one seed and one tool set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from verl_toolrl.data.world.offers import described, finds_anything, offer, shared_lists, unrelated
from verl_toolrl.data.world.rows import RowWriter, count_words
from verl_toolrl.data.world.spec import WorldSpec
from verl_toolrl.data.world.splits import (
    HELD_OUT,
    SPLITS,
    choose_unseen,
    kinds_of,
    question_key,
    refuse_leaks,
    schedule,
)
from verl_toolrl.data.world.subjects import Subject, subject_of
from verl_toolrl.data.world.talk import some_wish
from verl_toolrl.data.world.tasks import Kind, Task, call_task, talk_task, unserved_task
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.toolbox import Tool, Toolbox

__all__ = ["World", "make_world"]

_TRIES = 60
"""Draws for one row before another tool is asked about."""


@dataclass(frozen=True)
class World:
    """Rows by split, and what they were made of."""

    spec: WorldSpec
    splits: Mapping[str, list[dict[str, Any]]]
    """`train`, `seen`, `unseen`, `no_tool` in verl's RL schema, `sft` in that of its SFT trainer."""
    tasks: Mapping[str, list[Task]]
    """The tasks behind the rows, in the same order."""
    offered: Mapping[str, list[list[str]]]
    """Names of the tools on each row's list."""
    seen_tools: tuple[str, ...]
    unseen_tools: tuple[str, ...]


def make_world(spec: WorldSpec, *, count_tokens: Callable[..., int] | None = None) -> World:
    """Make the rows.

    Args:
        spec: What to make.
        count_tokens: Length in tokens of messages, and of the tools for the chat template where a row has such, for
            `min_prompt`; words are counted without it.

    Returns:
        Splits in which no question stands twice.

    Raises:
        ConfigError: If the tool set or an unseen tool is unknown, or the set is too small for what is asked.
        DatasetError: If the tools do not give that many different questions, or a schema gives no values.
    """
    tools = _tools_of(spec.toolset)
    maker = _Maker(spec, tools, count_tokens or count_words)
    # Held-out rows first, so that they stay the same however many rows are trained on.
    for split in (*HELD_OUT, "sft", "train"):
        maker.fill(split)
    world = World(
        spec,
        {split: maker.rows[split] for split in SPLITS},
        {split: maker.tasks[split] for split in SPLITS},
        {split: maker.offered[split] for split in SPLITS},
        tuple(tool.name for tool in maker.seen),
        tuple(tool.name for tool in maker.unseen),
    )
    refuse_leaks(world.splits, unseen=world.unseen_tools)
    return world


def _tools_of(toolset: str) -> list[Tool]:
    """Return the tools that rows may be about: all but those that end a trajectory, which no single turn calls."""
    box = Toolbox.load(toolset)
    if box.has_sources:

        async def opened() -> list[Tool]:
            async with box:
                return list(box.tools.values())

        tools = asyncio.run(opened())
    else:
        tools = list(box.tools.values())
    found = [tool for tool in tools if not tool.ends_trajectory]
    if not found:
        raise ConfigError(f"tool set {toolset}: no tool to make rows of")
    return found


class _Maker:
    def __init__(self, spec: WorldSpec, tools: Sequence[Tool], count: Callable[..., int]) -> None:
        self.spec, self.tools, self.writer = spec, tools, RowWriter(spec, count)
        names = () if spec.unseen_tools is None and not spec.unseen else spec.unseen_tools
        hidden = choose_unseen(tools, names, Random(f"{spec.seed}/unseen"))
        self.seen = [tool for tool in tools if tool.name not in hidden]
        self.unseen = [tool for tool in tools if tool.name in hidden]
        if spec.unseen and not self.unseen:
            raise ConfigError(
                f"tool set {spec.toolset}: {len(tools)} tools are too few to hold one out; ask for 0 unseen rows"
            )
        self.subjects = {tool.name: subject_of(tool) for tool in tools}
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        self.offered: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
        self.asked: set[str] = set()
        self.lists: list[list[Tool]] | None = None
        """Lists that held-out rows share, those of unseen tools last; None where each row has its own."""
        if spec.lists is not None:
            self.lists = []
            for split, wanted, others in (("seen", self.seen, self.seen), ("unseen", self.unseen, self.tools)):
                draw = Random(f"{spec.seed}/lists/{split}")
                if wanted:
                    self.lists += shared_lists(draw, wanted, others, count=spec.lists, sizes=spec.tools)

    def _offer(
        self, split: str, draw: Random, needed: Sequence[Tool], others: Sequence[Tool], size: int
    ) -> list[Tool] | None:
        """Return a list with the needed tools and others; None if no shared list has all of the first and nothing
        beyond the second."""
        if self.lists is None or split not in HELD_OUT:
            return offer(draw, needed, others, size)
        names, allowed = {tool.name for tool in needed}, {tool.name for tool in (*needed, *others)}
        fitting = [each for each in self.lists if names <= {tool.name for tool in each} <= allowed]
        return draw.choice(fitting) if fitting else None

    def fill(self, split: str) -> None:
        """Make the rows of one split."""
        wanted = getattr(self.spec, split)
        if not wanted:
            return
        draw = Random(f"{self.spec.seed}/{split}")
        pool = self.unseen if split == "unseen" else self.seen
        turns = _Turns(pool, draw)
        for kind in schedule(self._mix(split, pool), wanted, draw):
            task, tools = self._new(split, kind, turns, draw)
            self.asked.add(question_key(task.question))
            self.tasks[split].append(task)
            self.offered[split].append([tool.name for tool in tools])
            listed = [self.subjects[tool.name] for tool in tools]
            self.rows[split].append(self.writer.row(split, len(self.rows[split]), task, listed, taken=self.asked))

    def _mix(self, split: str, pool: Sequence[Tool]) -> dict[Kind, float]:
        """Return the shares of those kinds of a split that its tools allow."""
        mix = kinds_of(split, self.spec.mix)
        possible = {kind: share for kind, share in mix.items() if self._possible(kind, pool)}
        if possible:
            return possible
        if split == "no_tool":
            return {Kind.TALK: 1.0}
        names = ", ".join(tool.name for tool in pool)
        raise ConfigError(f"split {split!r}: {names} give no rows of kind {', '.join(kind.value for kind in mix)}")

    def _possible(self, kind: Kind, pool: Sequence[Tool]) -> bool:
        """Whether the tools allow rows of a kind: not every tool has a value to work out, and a tool for everything
        leaves nothing missing."""
        if kind is Kind.MISSING:
            return not all(map(finds_anything, self.seen))
        if kind not in (Kind.LOOKUP, Kind.COMPUTED):
            return True
        subjects = [self.subjects[tool.name] for tool in pool]
        return any(
            call_task(kind, [subject], Random(number), held_out=True) for subject in subjects for number in range(8)
        )

    def _new(self, split: str, kind: Kind, turns: _Turns, draw: Random) -> tuple[Task, list[Tool]]:
        """Draw tasks until one asks something new."""
        for _ in range(2 * len(self.tools)):
            subject = self.subjects[turns.next().name]
            for _ in range(_TRIES):
                found = self._draw(split, kind, subject, draw)
                if found is not None and question_key(found[0].question) not in self.asked:
                    return found
        made = sum(map(len, self.tasks.values()))
        raise DatasetError(
            f"tool set {self.spec.toolset}: no new question of kind {kind.value!r} after {made} rows "
            f"(split {split}); ask for fewer rows, other kinds (mix), or give the tools wider schemas"
        )

    def _draw(self, split: str, kind: Kind, subject: Subject, draw: Random) -> tuple[Task, list[Tool]] | None:
        held_out, size = split in HELD_OUT, draw.randint(*self.spec.tools)
        others = self.tools if split == "unseen" else self.seen
        if kind is Kind.TALK:
            return _together(talk_task(draw), self._offer(split, draw, (), others, size))
        if kind is Kind.MISSING:
            return self._missing(split, subject, draw, size)
        subjects = [subject]
        if kind is Kind.PARALLEL:
            pool = self._partners(split, subject.tool, self.unseen if split == "unseen" else self.seen)
            more = draw.randint(1, self.spec.max_calls - 1)
            subjects += [self.subjects[draw.choice(pool).name] for _ in range(more)]
        task = call_task(kind, subjects, draw, held_out=held_out)
        if task is None:
            return None
        needed = {call.name: self.subjects[call.name].tool for call in task.calls}
        return _together(task, self._offer(split, draw, list(needed.values()), others, size))

    def _partners(self, split: str, tool: Tool, pool: Sequence[Tool]) -> Sequence[Tool]:
        """Return the tools that may be needed together with one."""
        if self.lists is None or split not in HELD_OUT:
            return pool
        names = {other.name for each in self.lists if tool in each for other in each}
        return [other for other in pool if other.name in names]

    def _missing(self, split: str, subject: Subject, draw: Random, size: int) -> tuple[Task, list[Tool]] | None:
        """Draw a wish for a tool that is not on the list: one of the set, or one that no set has."""
        free = [tool for tool in self.seen if unrelated(tool, subject.tool)]
        if free and draw.random() < 0.5:
            ask = subject.ask(draw, held_out=split in HELD_OUT)
            task = unserved_task(ask.text, new_wording=ask.new_wording)
            return _together(task, self._offer(split, draw, (), free, size))
        tools = self._offer(split, draw, (), [tool for tool in self.seen if not finds_anything(tool)], size)
        wish = some_wish(draw, described(tools)) if tools else None
        return None if wish is None else _together(unserved_task(wish), tools)


def _together(task: Task, tools: list[Tool] | None) -> tuple[Task, list[Tool]] | None:
    return None if tools is None else (task, tools)


class _Turns:
    """Gives tools in random order, each as often as the others."""

    def __init__(self, tools: Sequence[Tool], draw: Random) -> None:
        self._tools, self._draw = list(tools), draw
        self._left: list[Tool] = []

    def next(self) -> Tool:
        if not self._left:
            self._left = self._draw.sample(self._tools, len(self._tools))
        return self._left.pop()
