"""Rows from tools that nobody wrote phrases for: values from the schema, questions from descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.data.check import check_rows
from verl_toolrl.data.world import Kind, WorldSpec, make_world
from verl_toolrl.data.world.generic import first_sentence
from verl_toolrl.data.world.values import draw_arguments, draw_value
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.toolbox.toolset import ready_made

TOOLS = '''
from datetime import date
from typing import Annotated, Literal
from pydantic import BaseModel, Field
from verl_toolrl.toolbox import tool

class Room(BaseModel):
    beds: Annotated[int, Field(ge=1, le=4)]
    view: Literal["sea", "garden"]

@tool
def book_table(place: str, people: Annotated[int, Field(ge=4, le=12)], day: date, outside: bool = False) -> str:
    """Books a table in a restaurant. Nothing is charged.

    Args:
        place: Name of the restaurant.
        people: How many guests.
        day: The date.
        outside: Whether to sit outside.
    """
    return f"{people} at {place}"

@tool
def book_room(hotel: str, room: Room, nights: int = 1) -> str:
    """Book a hotel room."""
    return hotel

@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Return the weather of a city."""
    return city

@tool
def play_song(title: str, volume: Annotated[float, Field(gt=0, lt=1, multiple_of=0.1)] = 0.5,
              tags: list[str] | None = None) -> str:
    """Play a song on the speaker."""
    return title

@tool
def vote(choice: Literal[1, 2, 3], remark: str | None = None) -> str:
    """Cast a vote."""
    return str(choice)

@tool
def stop_all() -> str:
    """Stop everything at once."""
    return ""
'''
OPENAPI = """
openapi: 3.0.0
info: {title: Pets, version: "1"}
paths:
  /pet/{id}:
    get:
      operationId: get_pet
      summary: Find a pet.
      parameters:
        - {name: id, in: path, required: true, description: Number of the pet, schema: {type: integer, minimum: 1}}
      responses: {"200": {description: ok}}
"""


@pytest.fixture(scope="module")
def toolset(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("tools") / "my_tools.py"
    file.write_text(TOOLS)
    return str(file)


def test_rows_of_unknown_tools_pass_the_data_check(toolset: str) -> None:
    world = make_world(WorldSpec(toolset=toolset, train=150, sft=20, seen=40, unseen=20, no_tool=20))
    for split in ("train", "seen", "unseen", "no_tool"):
        report = check_rows(world.splits[split], split)
        assert [] == [(each.check, each.rows[0]) for each in report.findings if each.rows]
    assert {task.kind for task in world.tasks["train"]} == set(Kind)


def test_a_question_names_every_argument_and_its_value(toolset: str) -> None:
    world = make_world(WorldSpec(toolset=toolset, train=120, sft=0, seen=0, unseen=0, no_tool=0, mix={Kind.ONE: 1}))
    for task in world.tasks["train"]:
        for name, value in task.calls[0].arguments.items():
            said = value if isinstance(value, str) else json.dumps(value)
            assert name in task.question.lower() and said in task.question, task.question


def test_documentation_becomes_a_wish(toolset: str) -> None:
    world = make_world(WorldSpec(toolset=toolset, train=150, sft=0, seen=0, unseen=0, no_tool=0, mix={Kind.ONE: 1}))
    questions = [task.question.lower() for task in world.tasks["train"]]
    assert any("book a table in a restaurant" in each for each in questions)  # Books ...
    assert any("tell me the weather of a city" in each for each in questions)  # Return ...


def test_tools_that_are_known_only_once_their_source_is_open_give_rows_too(tmp_path: Path) -> None:
    (tmp_path / "pets.yaml").write_text(OPENAPI)
    (tmp_path / "set.yaml").write_text(
        'tools: [{openapi: {spec: pets.yaml, base_url: "http://localhost:9"}}, calculator]'
    )
    spec = WorldSpec(toolset=str(tmp_path / "set.yaml"), train=20, sft=0, seen=0, unseen=0, no_tool=0)
    assert {"get_pet", "calculate"} == set(make_world(spec).seen_tools)


def test_every_ready_made_set_gives_rows() -> None:
    for name in ready_made():
        if name != "finish":  # which no single turn calls
            world = make_world(WorldSpec(toolset=name, train=30, sft=2, seen=4, unseen=0, no_tool=4))
            assert () == world.unseen_tools and all(all(offered) for offered in world.offered.values())


def test_where_a_tool_may_find_anything_nothing_is_missing() -> None:
    world = make_world(WorldSpec(toolset="http_fetch", train=30, sft=0, seen=0, unseen=0, no_tool=8))
    assert {Kind.TALK} == {task.kind for task in world.tasks["no_tool"]}
    assert Kind.MISSING not in {task.kind for task in world.tasks["train"]}


def test_kinds_that_no_tool_allows_are_refused() -> None:
    with pytest.raises(ConfigError, match="split 'train': .*query.* give no rows of kind computed"):
        make_world(WorldSpec(toolset="sqlite_db", unseen=0, seen=0, no_tool=0, sft=0, mix={Kind.COMPUTED: 1}))


def test_a_schema_that_nothing_fits_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    pattern = "^(ab|cd){3}-[xyz]{2}$"
    file.write_text(
        "from typing import Annotated\nfrom pydantic import Field\nfrom verl_toolrl.toolbox import tool\n@tool\n"
        f"def look(key: Annotated[str, Field(pattern={pattern!r})]) -> str:\n    '''Look.'''\n    return key\n"
    )
    with pytest.raises(DatasetError, match="'look': no value can be made up for key.*'examples'"):
        make_world(WorldSpec(toolset=str(file), unseen=0))


SCHEMAS: list[dict[str, Any]] = [
    {"const": 5},
    {"enum": ["a", 2, None]},
    {"type": "string", "pattern": "^...$", "examples": ["abc", "xyz"]},
    {"type": "integer", "minimum": 3, "maximum": 3},
    {"type": "integer", "exclusiveMinimum": 7, "maximum": 9},
    {"type": "integer", "maximum": -5},
    {"type": "integer", "minimum": 10, "multipleOf": 7},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
    {"type": "number", "minimum": 1e9},
    {"type": ["string", "null"], "format": "date"},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 2}]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 1},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}}, "required": ["a"]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}}}},
    {"type": "string", "minLength": 30},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[A-Z]{3}$"},
    {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    {"type": "string", "pattern": r"^\d{5}$"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda each: json.dumps(each)[:60])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_drawn_value_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    value = draw_value(schema, Random(seed), root=schema)
    assert jsonschema_rs.validator_for(schema).is_valid(value), value


def test_required_parameters_are_always_there_and_optional_ones_sometimes() -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]}
    drawn = [set(draw_arguments(schema, Random(seed))) for seed in range(40)]
    assert {frozenset("a"), frozenset("ab")} == set(map(frozenset, drawn))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Add two numbers.", "Add two numbers"),
        ("Find a place. At most 20.", "Find a place"),
        ("Use e.g. a name\nof a city. More.", "Use e.g. a name of a city"),
        ("Costs 2.5 dollars. Yes.", "Costs 2.5 dollars"),
        ("No stop", "No stop"),
    ],
)
def test_the_first_sentence_ends_where_a_sentence_ends(text: str, sentence: str) -> None:
    assert sentence == first_sentence(text)
