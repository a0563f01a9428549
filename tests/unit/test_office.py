"""The office: questions that its tools answer, and nobody else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from verl_toolrl.data.office import Task, expert_messages, make_tasks, rl_row
from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.formats import parse_response
from verl_toolrl.rewards.steptool import StepToolReward
from verl_toolrl.schema import validate_row
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import Outcome, Step, ToolResult, Trajectory

TASKS = make_tasks(40, seed=1)


def experts(tasks: list[Task]) -> list[list[dict[str, Any]]]:
    async def all_of_them() -> list[list[dict[str, Any]]]:
        async with Toolbox.load("office") as box:
            return [await expert_messages(task, box) for task in tasks]

    return asyncio.run(all_of_them())


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert TASKS == make_tasks(40, seed=1)
    assert TASKS != make_tasks(40, seed=2)


def test_no_question_is_asked_twice_and_kinds_are_balanced() -> None:
    assert 40 == len({task.question for task in TASKS})
    assert {4} == {sum(task.kind == kind for task in TASKS) for kind in {task.kind for task in TASKS}}


def test_kinds_are_taken_in_turn() -> None:
    kinds = ["price", "city_of_who", "stock"]
    assert kinds * 3 == [task.kind for task in make_tasks(9, seed=1, kinds=kinds)]
    with pytest.raises(UnknownNameError, match="did you mean 'price'"):
        make_tasks(1, seed=1, kinds=["prize"])


def test_two_of_five_tasks_need_two_calls_whose_second_uses_what_the_first_found() -> None:
    chained = [task for task in TASKS if len(task.calls) == 2]
    assert 16 == len(chained)
    for task in chained:
        (second,) = task.calls[1].arguments.values()
        assert second not in task.question


def test_held_out_people_and_items_stand_in_no_row_for_training() -> None:
    def names(split: str) -> set[str]:
        tasks = make_tasks(100, seed=3, split=split)
        people = {each["name"] for task in tasks for each in task.state["ContactBook"]["contacts"]}
        return people | {item for task in tasks for item in task.state["Inventory"]["stock"]}

    assert not names("train") & names("held_out")


def test_an_expert_gets_the_answer_from_the_tools_alone() -> None:
    for task, conversation in zip(TASKS, experts(TASKS)):
        asked = conversation[:2]
        assert task.answer not in "".join(message["content"] for message in asked)
        written = [message["content"] for message in conversation if message["role"] == "assistant"]
        calls = [call for text in written[:-1] for call in parse_response(text).calls]
        assert [(call.name, call.arguments) for call in task.calls] == [(call.name, call.arguments) for call in calls]
        assert all(parse_response(text).well_formed for text in written)
        assert task.answer == parse_response(written[-1]).response


def test_an_experts_thoughts_say_what_is_asked_for_and_why_the_next_tool_finds_it() -> None:
    (task,) = make_tasks(1, seed=1, kinds=["price_of_what"])
    thoughts = [parse_response(m["content"]).thought for m in experts([task])[0] if m["role"] == "assistant"]
    day, item = (next(iter(call.arguments.values())) for call in task.calls)
    assert thoughts == [
        f"I want the price of an item. {day} is a day: list_events.",
        f"I want the price of an item. {item} is an item: check_stock.",
        f"I want the price of an item. It is {task.answer}.",
    ]


def test_an_experts_trajectory_earns_the_most_and_all_of_its_calls_count_as_used() -> None:
    """What the quickstart reports as needless calls is then the model's doing."""
    reward = StepToolReward(mode="robust")
    for task, conversation in zip(TASKS, experts(TASKS)):
        found = reward(as_trajectory(task, conversation))
        assert (1.5, len(task.calls)) == (found.score, found.metrics["used_calls"]), task


def as_trajectory(task: Task, conversation: list[dict[str, Any]]) -> Trajectory:
    steps = []
    for index in range(2, len(conversation), 2):
        text = conversation[index]["content"]
        results: tuple[ToolResult, ...] = ()
        if index + 1 < len(conversation):
            body = conversation[index + 1]["content"].removeprefix("<obs> ").removesuffix(" </obs>")
            results = (ToolResult(Outcome.OK, json.dumps(json.loads(body)[0]["results"])),)
        steps.append(Step(text, parse_response(text).calls, results))
    return Trajectory(tuple(steps), messages=tuple(conversation[:2]), extra={"ground_truth": task.answer})


def test_an_answer_that_the_tools_do_not_give_is_the_authors_mistake() -> None:
    task = TASKS[0]
    wrong = Task(task.kind, task.question, "Atlantis", task.calls, task.state)
    with pytest.raises(DatasetError, match="'Atlantis' does not stand in"):
        experts([wrong])


def test_a_row_is_valid_and_carries_the_state_of_its_tools() -> None:
    row = rl_row(TASKS[6], index=6, split="train")
    validate_row(row)
    assert {"state": TASKS[6].state} == json.loads(row["extra_info"]["session"])


def test_more_tasks_than_there_are_and_an_unknown_split_are_refused() -> None:
    with pytest.raises(ConfigError, match="different tasks in the split held_out"):
        make_tasks(10_000, seed=1, split="held_out")
    with pytest.raises(UnknownNameError, match="held_out"):
        make_tasks(1, seed=1, split="heldout")
