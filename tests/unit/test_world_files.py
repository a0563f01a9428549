"""`verl-toolrl data make`, prompts of every format, and the files that come out."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.data.rows import read_rows
from verl_toolrl.data.world import Kind, World, WorldSpec, make_world
from verl_toolrl.data.world.files import split_numbers
from verl_toolrl.data.world.rows import count_words, prompt_length
from verl_toolrl.data.world.splits import read_mix
from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import parse_response
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.toolbox import Budget, Toolbox

SMALL = {"train": 12, "sft": 6, "seen": 8, "unseen": 4, "no_tool": 4}


def small(**options: Any) -> World:
    return make_world(WorldSpec(**{**SMALL, **options}))


def make(*arguments: str) -> Any:
    sizes = ("--train", "12", "--sft", "6", "--held-out", "8", "--unseen", "4", "--no-tool", "4")
    return CliRunner().invoke(app, ["data", "make", *arguments, *sizes])


def test_the_command_writes_what_the_same_call_makes(tmp_path: Path) -> None:
    done = make("quickstart", str(tmp_path), "--json")
    assert 0 == done.exit_code, done.output
    world, numbers = small(), json.loads(done.output)
    for split, rows in world.splits.items():
        assert rows == read_rows(tmp_path / f"{split}.parquet")
        assert split_numbers(world, split) == numbers[split]
    assert ["words"] * 5 == [numbers[split]["length_unit"] for split in world.splits]


def test_the_same_world_may_be_written_again_and_no_other(tmp_path: Path) -> None:
    first, again, other = (make("quickstart", str(tmp_path), "--seed", seed) for seed in "112")
    assert (0, 0, 1) == (first.exit_code, again.exit_code, other.exit_code)
    assert isinstance(other.exception, ConfigError) and "seed 1 there, 2 here" in str(other.exception)


def test_a_folder_with_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"x")
    done = make("quickstart", str(tmp_path))
    assert "holds other data (mine.parquet)" in str(done.exception)
    assert b"x" == (tmp_path / "mine.parquet").read_bytes() and 1 == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quickstrat",), "did you mean 'quickstart'"),
        (("quickstart", "--mix", "paralel=1"), "did you mean 'parallel'"),
        (("quickstart", "--mix", "one=x"), "wanted kind=share"),
        (("quickstart", "--mix", "one=0"), "not all 0"),
        (("quickstart", "--mix", "talk=1"), "split 'seen' needs a kind with calls"),
        (("quickstart", "--tools", "few"), "wanted a number or a range"),
        (("quickstart", "--unseen-tools", "sel,restock"), "did you mean 'sell'"),
        (("quickstart", "--format", "native", "--dialect", "hermez"), "did you mean 'hermes'"),
        (("quickstart", "--dialect", "hermes"), "belongs to --format native"),
        (("quickstart", "--format", "native", "--style", "full"), "belongs to --format toolrl"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = make(arguments[0], str(tmp_path / "out"), *arguments[1:])
    assert isinstance(done.exception, ConfigError) and says in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_native_rows_hold_plain_messages_and_the_tools_beside_them() -> None:
    world = small(format="native")
    for row, task in zip(world.splits["train"], world.tasks["train"], strict=True):
        assert ["system", "user"] == [message["role"] for message in row["prompt"]]
        assert task.question == row["prompt"][-1]["content"]
        assert row["extra_info"]["tool_selection"] == [each["function"]["name"] for each in json.loads(row["tools"])]
        truth = parse_ground_truth(row["reward_model"]["ground_truth"])
        assert task.calls == truth.calls and task.answer == truth.response


@pytest.mark.parametrize("dialect", ["hermes", "llama3_json", "pythonic", "qwen3_coder"])
def test_supervised_native_rows_are_written_in_the_dialect_of_the_model(dialect: str) -> None:
    world = small(format="native", dialect=dialect)
    for row, task in zip(world.splits["sft"], world.tasks["sft"], strict=True):
        found = parse_response(row["messages"][-1]["content"], dialect, tools=json.loads(row["tools"]))
        assert [(call.name, call.arguments) for call in task.calls] == [
            (call.name, call.arguments) for call in found.calls
        ]


def test_the_full_style_says_all_parts_of_the_prompt_and_gives_whole_schemas() -> None:
    system = small(style="full").splits["train"][0]["prompt"][0]["content"]
    parts = ("Available Tools", "Steps for Each Turn", "Output Format", "Important Notes")
    places = [system.index(f"**{part}**") for part in parts]
    assert sorted(places) == places and "{tools}" not in system
    listed = [json.loads(line[12:]) for line in system.splitlines() if line.startswith("Parameters: ")]
    assert listed and all(["description", "type", "default"] == list(each) for tool in listed for each in tool.values())


@pytest.mark.parametrize("format", ["toolrl", "native"])
def test_prompts_are_lengthened_by_earlier_turns_until_they_are_long_enough(format: str) -> None:
    short, long = small(format=format), small(format=format, min_prompt=1500)
    for old, new in zip(short.splits["train"], long.splits["train"], strict=True):
        assert 1500 <= prompt_length(new, count_words) < 1600
        assert old["reward_model"] == new["reward_model"]
        assert new["prompt"][-1]["content"].endswith(old["prompt"][-1]["content"].split("\n")[-1])


def test_earlier_turns_hold_calls_with_what_the_tools_answer() -> None:
    world = small(min_prompt=1500, tools=(6, 6))
    found = []
    for row, offered in zip(world.splits["train"], world.offered["train"], strict=True):
        for text, answer in re.findall(
            r"(<think> [^<]* </think>\n<tool_call>.*?)\n<obs> (.*?) </obs>", _user(row), re.S
        ):
            (call,), (result,) = parse_response(text).calls, json.loads(answer)
            assert call.name in offered and call.name == result["name"]
            found.append((call, result["results"]))

    async def ask() -> None:
        async with Toolbox.load("quickstart") as box, box.session("t", budget=Budget(calls=len(found))) as session:
            for call, result in found:
                assert result == (await session.call(call)).value

    assert len(found) > 20
    asyncio.run(ask())


def test_native_rows_give_what_tools_answered_as_messages_of_their_own() -> None:
    world = small(format="native", min_prompt=1500, tools=(6, 6))
    for row in world.splits["train"]:
        roles = [message["role"] for message in row["prompt"]]
        assert "tool" in roles and all(roles[at - 1] == "assistant" for at, role in enumerate(roles) if role == "tool")


def _user(row: Any) -> str:
    return str(row["prompt"][-1]["content"])


def test_a_given_tokenizer_measures_lengths() -> None:
    world = make_world(WorldSpec(**SMALL, min_prompt=4000), count_tokens=lambda messages: len(str(messages)))
    numbers = split_numbers(world, "train", count_tokens=lambda messages: len(str(messages)))
    assert "tokens" == numbers["length_unit"] and numbers["prompt_length"]["0"] >= 4000


def test_lists_are_as_long_as_asked_for() -> None:
    world = small(tools=(5, 5))
    assert {5} == {len(offered) for split in ("train", "seen") for offered in world.offered[split]}


def test_rows_have_as_many_calls_as_asked_for() -> None:
    world = small(train=60, mix={Kind.PARALLEL: 1}, max_calls=4, tools=(4, 4))
    assert {2, 3, 4} == {len(task.calls) for task in world.tasks["train"]}


def test_numbers_are_counted_from_the_rows() -> None:
    world = small(mix=read_mix("one=3,parallel=1"))
    numbers = split_numbers(world, "train")
    # 12 rows in the proportion 3 to 1: 9 with one call, 3 with two.
    assert (12, 15, {"one": 9, "parallel": 3}) == (
        numbers["rows"],
        numbers["calls"],
        dict(sorted(numbers["kinds"].items())),
    )
    assert numbers["parameters"] == sum(len(call.arguments) for task in world.tasks["train"] for call in task.calls)
    lengths = sorted(count_words(row["prompt"]) for row in world.splits["train"])
    # Of 12 rows the 6th is the first that half of them do not exceed, the 12th covers 95 %.
    assert [lengths[0], lengths[5], lengths[11], lengths[11]] == list(numbers["prompt_length"].values())
