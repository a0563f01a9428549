"""Rows made from tools: right calls run, questions are asked once, splits leak nothing, a seed gives one world."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_toolrl.data.check import check_rows
from verl_toolrl.data.world import HELD_OUT, Kind, World, WorldSpec, make_world, refuse_leaks
from verl_toolrl.data.world.asks import arguments_of, fields_of
from verl_toolrl.data.world.phrases import phrases_for
from verl_toolrl.data.world.splits import choose_unseen, schedule
from verl_toolrl.data.world.subjects import subject_of
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats.tool_list import row_tools, tools_from_prompt
from verl_toolrl.rewards import make_reward
from verl_toolrl.toolbox import Tool, Toolbox
from verl_toolrl.trajectory import Outcome


@pytest.fixture(scope="module", params=[None, 14], ids=["a list a row", "shared lists"])
def world(request: pytest.FixtureRequest) -> World:
    sizes = {"train": 300, "sft": 40, "seen": 150, "unseen": 80, "no_tool": 60}
    return make_world(WorldSpec(seed=3, **sizes, tools=(2, 4), lists=request.param))


def test_every_right_call_is_valid_and_runs(world: World) -> None:
    async def run() -> None:
        async with Toolbox.load("quickstart") as box:
            for split, tasks in world.tasks.items():
                for task in tasks:
                    async with box.session(split, state=task.state) as session:
                        for call in task.calls:
                            assert box.tools[call.name].check(dict(call.arguments)) == call.arguments
                            result = await session.call(call)
                            assert Outcome.OK is result.outcome, (task.question, call, result.content)

    asyncio.run(run())


def test_all_kinds_and_all_tools_occur(world: World) -> None:
    assert {task.kind for task in world.tasks["train"]} == set(Kind)
    called = {call.name for tasks in world.tasks.values() for task in tasks for call in task.calls}
    assert set(Toolbox.load("quickstart").tools) - {"finish"} == called
    assert {call.name for task in world.tasks["train"] for call in task.calls} == set(world.seen_tools)
    assert {call.name for task in world.tasks["unseen"] for call in task.calls} == set(world.unseen_tools)


def test_every_value_that_is_neither_looked_up_nor_computed_stands_in_the_question(world: World) -> None:
    for tasks in world.tasks.values():
        for task in tasks:
            if task.kind in (Kind.ONE, Kind.PARALLEL, Kind.LOOKUP):
                for call in task.calls:
                    for value in call.arguments.values():
                        parts = value if isinstance(value, list) else [value]
                        assert all(str(part) in task.question for part in parts), (task.question, call)


def test_rows_pass_the_data_check_and_earn_the_maximum(world: World) -> None:
    rl = {split: rows for split, rows in world.splits.items() if split != "sft"}
    for split, rows in rl.items():
        others = {other: rl[other] for other in rl if other != split}
        report = check_rows(rows, split, others=others)
        assert [] == [(each.check, each.rows[0]) for each in report.findings if each.rows], split


def test_held_out_splits_are_reported_apart(world: World) -> None:
    for split in HELD_OUT:
        assert {f"world_{split}"} == {row["data_source"] for row in world.splits[split]}
    assert {"world"} == {row["data_source"] for row in world.splits["train"]}


def test_the_right_tools_are_offered_and_a_missing_one_is_not(world: World) -> None:
    for split, tasks in world.tasks.items():
        for task, offered in zip(tasks, world.offered[split], strict=True):
            assert {call.name for call in task.calls} <= set(offered)
            assert 1 <= len(offered) <= 4 and len(set(offered)) == len(offered)
            assert task.kind.has_calls == bool(task.calls) and bool(task.calls) != bool(task.answer)


def test_held_out_rows_share_the_lists_that_were_asked_for_and_training_rows_do_not() -> None:
    world = make_world(WorldSpec(train=100, sft=20, seen=40, unseen=40, no_tool=10, lists=12))
    lists = {split: {tuple(names) for names in offered} for split, offered in world.offered.items()}
    assert 12 == len(lists["seen"] | lists["no_tool"]) and len(lists["unseen"]) <= 12
    assert all(set(world.unseen_tools) & set(names) for names in lists["unseen"])
    prompts = {row["prompt"][0]["content"] for row in world.splits["seen"]}
    assert len(prompts) == len(lists["seen"])
    assert len(lists["train"]) > 50 and len(lists["sft"]) > 15


def test_lists_on_which_some_tool_has_no_place_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 lists of 2 to 3 tools have no place for .*query"):
        make_world(WorldSpec(lists=3))
    with pytest.raises(ConfigError, match="lists must be at least 1, found 0"):
        WorldSpec(lists=0)


def test_held_out_rows_with_calls_and_without_stand_apart(world: World) -> None:
    assert all(task.calls for split in ("seen", "unseen") for task in world.tasks[split])
    assert not any(task.calls for task in world.tasks["no_tool"])


def test_no_training_row_shows_an_unseen_tool(world: World) -> None:
    for split in ("train", "sft"):
        for row in world.splits[split]:
            text = json.dumps(row)
            assert not any(f"Name: {name}" in text for name in world.unseen_tools)


def test_some_held_out_rows_use_wordings_that_training_never_shows(world: World) -> None:
    assert not any(task.new_wording for split in ("train", "sft") for task in world.tasks[split])
    new = sum(task.new_wording for task in world.tasks["seen"])
    assert 20 < new < 130  # about half of the asks in one's own words


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    spec = {"train": 30, "sft": 10, "seen": 20, "unseen": 10, "no_tool": 10}
    first, again, other = (make_world(WorldSpec(seed=seed, **spec)) for seed in (7, 7, 8))
    assert first.splits == again.splits
    assert first.splits["train"] != other.splits["train"]


def test_held_out_rows_do_not_depend_on_how_much_is_trained_on() -> None:
    small, large = (make_world(WorldSpec(train=train, sft=8, seen=20, unseen=10, no_tool=10)) for train in (10, 60))
    assert all(small.splits[split] == large.splits[split] for split in HELD_OUT)


def test_the_released_scorer_gives_the_maximum_for_every_right_answer(world: World) -> None:
    reward = make_reward("toolrl", mode="released")
    for row in world.splits["seen"]:
        truth = row["reward_model"]["ground_truth"]
        assert 4.0 == reward(response=truth, ground_truth=truth).score


def test_the_prompt_lists_the_tools_that_the_row_offers(world: World) -> None:
    for row, offered in zip(world.splits["train"], world.offered["train"], strict=True):
        assert offered == [tool["name"] for tool in tools_from_prompt(row["prompt"][0]["content"])]
        assert offered == [tool["name"] for tool in row_tools(row)] == row["extra_info"]["tool_selection"]


def _asking(said: str) -> dict[str, Any]:
    return {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": said}]}


@pytest.mark.parametrize(
    "said", ["<user> Sell 3 lamps. </user>", "**Dialogue**\n<user> a </user>\n\n<user> sell 3  LAMPS </user>"]
)
def test_splits_that_share_a_question_are_refused(said: str) -> None:
    trained = {"messages": [*_asking("<user> Sell 3 lamps. </user>")["prompt"], {"role": "assistant", "content": "x"}]}
    with pytest.raises(DatasetError, match="seen: row 0 asks the same as train: row 0"):
        refuse_leaks({"train": [trained], "seen": [_asking(said)]})


def test_a_training_row_that_asks_a_held_out_question_on_the_way_is_refused() -> None:
    said = "<user> Sell 3 lamps. </user>\n\n<think> a </think>\n<response> b </response>\n\n<user> Thanks. </user>"
    splits = {"train": [_asking(said)], "seen": [_asking("<user> Sell 3 lamps. </user>")]}
    with pytest.raises(DatasetError, match="train: row 0 asks earlier in its dialogue the same as seen: row 0"):
        refuse_leaks(splits)


def test_a_training_row_that_shows_an_unseen_tool_is_refused(world: World) -> None:
    with pytest.raises(DatasetError, match=r"train: row \d+ shows the tool 'sell'"):
        refuse_leaks({"train": world.splits["train"]}, unseen=["sell"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"toolset": "quickstrat"}, "did you mean 'quickstart'"),
        ({"format": "natif"}, "did you mean 'native'"),
        ({"style": "ful"}, "did you mean 'full'"),
        ({"unseen_tools": ("sel",)}, "did you mean 'sell'"),
        ({"train": -1}, "train must not be negative"),
        ({"tools": (3, 2)}, "found 3 to 2"),
        ({"toolset": "calculator"}, "too few to hold one out"),
        ({"toolset": "finish"}, "no tool to make rows of"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_nearest_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_world(WorldSpec(**options))


def test_more_rows_than_there_are_questions_is_refused() -> None:
    with pytest.raises(DatasetError, match="no new question of kind 'one'"):
        make_world(
            WorldSpec(toolset="sqlite_db", seen=0, unseen=0, no_tool=0, unseen_tools=("query",), mix={Kind.ONE: 1})
        )


QUICKSTART = [tool for tool in Toolbox.load("quickstart").tools.values() if not tool.ends_trajectory]


@pytest.mark.parametrize("tool", QUICKSTART, ids=lambda tool: tool.name)
def test_every_way_to_ask_for_a_ready_made_tool_leads_to_a_call_that_it_accepts(tool: Tool) -> None:
    phrases, subject = phrases_for(tool), subject_of(tool)
    assert phrases is not None
    known, required = set(tool.schema.parameters["properties"]), set(tool.schema.parameters.get("required", ()))
    for wording in phrases.wordings:
        assert required <= fields_of(wording) <= known, wording
    for way in phrases.lookups:
        assert required <= arguments_of(way) <= known, way
        assert {"who", "value"} <= fields_of(way.fact) and "who" in fields_of(way.wording)
    if phrases.lookups:
        assert all(subject.lookup(Random(seed)) for seed in range(20))
    ways = (lambda draw: subject.ask(draw, held_out=True), subject.lookup, subject.computed)
    for draw in map(Random, range(60)):
        for ask in filter(None, (way(draw) for way in ways)):
            assert tool.check(dict(ask.arguments)) == ask.arguments
            assert "{" not in ask.text and "  " not in ask.text and ask.text[-1] in ".?", ask.text


def test_unseen_tools_are_spread_over_domains_and_leave_each_some() -> None:
    for seed in range(20):
        hidden = choose_unseen(QUICKSTART, None, Random(seed))
        domains = [tool.domain for tool in QUICKSTART if tool.name in hidden]
        assert 4 == len(hidden) == len(set(domains))
        assert {tool.domain for tool in QUICKSTART} == {tool.domain for tool in QUICKSTART if tool.name not in hidden}


@given(st.dictionaries(st.sampled_from(Kind), st.integers(1, 20), min_size=1), st.integers(0, 200), st.integers())
def test_every_kind_has_its_share_to_within_one(mix: dict[Kind, float], count: int, seed: int) -> None:
    found = Counter(schedule(mix, count, Random(seed)))
    assert count == sum(found.values())
    assert all(abs(found[kind] - share / sum(mix.values()) * count) <= 1 for kind, share in mix.items())


def test_kinds_come_in_the_proportion_asked_for() -> None:
    world = make_world(WorldSpec(train=40, sft=0, seen=0, unseen=0, no_tool=0, mix={Kind.ONE: 3, Kind.PARALLEL: 1}))
    assert Counter({Kind.ONE: 30, Kind.PARALLEL: 10}) == Counter(task.kind for task in world.tasks["train"])
