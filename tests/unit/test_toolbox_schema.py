"""What an author writes is what the model reads and what arguments are checked against."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, Optional, Union

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from verl_toolrl.errors import ToolDefinitionError
from verl_toolrl.toolbox import ToolContext, ToolSchema, tool
from verl_toolrl.toolbox.schema import checkable


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: float
    y: float = 0.0


class Book(BaseModel):
    title: str


@dataclass
class Line:
    start: Point
    end: Point


def _properties(function: Any) -> dict[str, Any]:
    return tool(function).schema.to_dict()["function"]["parameters"]["properties"]


def test_a_function_gives_name_description_types_texts_defaults_and_required():
    @tool
    def book(city: str, nights: int = 2, *, extras: list[str] = []) -> str:  # noqa: B006 (a default that must be kept)
        """Book a hotel.

        It is paid on arrival.

        Args:
            city: Where to stay,
                written in English.
            nights (int): How long.
        """
        return city

    assert book.schema.to_dict() == {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book a hotel.\n\nIt is paid on arrival.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where to stay, written in English."},
                    "nights": {"type": "integer", "description": "How long.", "default": 2},
                    "extras": {"type": "array", "items": {"type": "string"}, "default": []},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    assert book("Lyon") == "Lyon"  # still an ordinary function


def test_nested_types_unions_enums_and_constraints_are_kept():
    def draw(
        line: Line,
        color: Color,
        mode: Literal["fast", "exact"],
        width: Annotated[int, Field(ge=1, le=9)],
        label: Optional[str] = None,  # noqa: UP045 (what many authors write)
        size: Union[int, str] = 1,  # noqa: UP007
        tags: dict[str, list[int]] = {},  # noqa: B006
    ) -> str:
        """Draw a line."""
        return ""

    schema = tool(draw).schema.parameters
    found = schema["properties"]
    assert found["line"] == {"$ref": "#/$defs/Line"}
    assert schema["$defs"]["Line"]["properties"]["start"] == {"$ref": "#/$defs/Point"}
    assert schema["$defs"]["Point"]["properties"]["y"] == {"type": "number", "default": 0.0}
    assert schema["$defs"]["Color"] == {"enum": ["red", "blue"], "type": "string"}
    assert found["mode"]["enum"] == ["fast", "exact"]
    assert (found["width"]["minimum"], found["width"]["maximum"]) == (1, 9)
    assert found["label"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert found["size"] == {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": 1}
    assert found["tags"]["additionalProperties"] == {"type": "array", "items": {"type": "integer"}}


def test_made_up_titles_go_but_a_property_called_title_stays():
    def add(title: str, book: Book) -> str:
        """Add a book."""
        return title

    schema = tool(add).schema.parameters
    assert schema["properties"]["title"] == {"type": "string"}
    assert schema["$defs"]["Book"] == {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
    }


def test_a_context_parameter_is_hidden_from_the_model():
    def who(question: str, context: ToolContext) -> str:
        """Say who asks."""
        return context.trajectory_id

    assert list(_properties(who)) == ["question"]


def _without_type(city) -> str:
    """Text."""
    return city


def _without_docstring(city: str) -> str:
    return city


def _variadic(*cities: str) -> str:
    """Text."""
    return ""


def _wrong_args_section(city: str) -> str:
    """Text.

    Args:
        cty: Where.
    """
    return city


def _no_json_form(file: open) -> str:  # type: ignore[valid-type]
    """Text."""
    return ""


def _unresolvable(x: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Text."""
    return ""


def _bad_default(x: Any = object()) -> str:  # noqa: B008
    """Text."""
    return ""


async def _generator(x: int):
    """Text."""
    yield x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        pytest.param(_without_type, ["'city' has no type", "city: str", "test_toolbox_schema.py"], id="no type"),
        pytest.param(_without_docstring, ["no docstring"], id="no docstring"),
        pytest.param(_variadic, ["*cities"], id="variadic"),
        pytest.param(_wrong_args_section, ["'cty'", "did you mean 'city'"], id="docstring names no parameter"),
        pytest.param(_no_json_form, ["annotation"], id="no JSON form"),
        pytest.param(_unresolvable, ["Nowhere"], id="unresolvable annotation"),
        pytest.param(_bad_default, ["default of 'x'"], id="default without JSON form"),
        pytest.param(_generator, ["generator"], id="generator"),
        pytest.param(Point, ["StatefulTool"], id="a class"),
    ],
)
def test_what_an_author_writes_wrong_raises_at_once_and_says_what(function: Any, words: list[str]):
    with pytest.raises(ToolDefinitionError) as caught:
        tool(function)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        pytest.param({"type": "object", "properties": {"a": {"type": "strnig"}}}, ["properties/a"], id="unknown type"),
        pytest.param({"type": "array"}, ["type object at the root"], id="no object"),
        pytest.param({"$ref": "http://127.0.0.1:9/x.json"}, ["only references inside"], id="remote reference"),
        pytest.param({"type": "object", "properties": {"a": {"pattern": "("}}}, ["pattern"], id="broken pattern"),
        pytest.param("text", ["JSON Schema"], id="no mapping"),
    ],
)
def test_an_invalid_schema_raises_at_once_and_says_where(parameters: Any, words: list[str]):
    with pytest.raises(ToolDefinitionError) as caught:

        @tool(schema={"name": "t", "description": "d", "parameters": parameters})
        def t(**anything: Any) -> str:
            return ""

    for word in ["'t'", *words]:
        assert word in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None)
@given(parameters=st.dictionaries(st.text(), _JSON, min_size=1, max_size=4), extra=st.dictionaries(st.text(), _JSON))
def test_any_schema_survives_the_round_trip(parameters: dict[str, Any], extra: dict[str, Any]):
    block = {"name": "t", "description": "d", "parameters": parameters}
    block.update({key: value for key, value in extra.items() if key not in block})
    assert ToolSchema.from_dict(block).to_dict()["function"] == block
    assert ToolSchema.from_dict({"type": "function", "function": block}).to_dict() == {
        "type": "function",
        "function": block,
    }


# Type names of data sets, with what they must accept and refuse. Source: counts over BFCL v4 (see test_toolbox_bfcl).
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("dict", {}, []),
        ("HashMap", {}, "x"),
        ("tuple", [1], {}),
        ("ArrayList", [], 1),
        ("float", 1.5, "x"),
        ("double", 1, None),
        ("long", 3, 1.5),
        ("String", "x", 1),
        ("char", "x", []),
        ("Boolean", True, "x"),
    ],
)
def test_type_names_of_data_sets_are_checked_in_standard_words(name: str, good: Any, bad: Any):
    validator = jsonschema_rs.validator_for(checkable({"type": name}))
    assert validator.is_valid(good) and not validator.is_valid(bad)


def test_the_type_any_accepts_everything():
    assert checkable({"type": "any", "description": "x"}) == {"description": "x"}


def test_dates_and_models_reach_the_function_as_objects():
    def span(day: date, point: Point, color: Color, plain: list[int]) -> str:
        """Text."""
        return ""

    checked = tool(span).check({"day": "2026-02-03", "point": {"x": 1}, "color": "red", "plain": [1]})
    assert checked == {"day": date(2026, 2, 3), "point": Point(x=1.0), "color": Color.RED, "plain": [1]}
