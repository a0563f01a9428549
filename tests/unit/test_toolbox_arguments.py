"""Arguments are coerced where one reading exists, and refused in words that a model can act on."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.toolbox import ModelMistake, ToolSchema
from verl_toolrl.toolbox.arguments import ArgumentChecker

_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "s": {"type": "string"},
        "l": {"type": "array", "items": {"type": "integer"}},
        "o": {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"]},
        "e": {"enum": ["celsius", "kelvin"]},
        "u": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "su": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "r": {"$ref": "#/$defs/pair"},
    },
    "$defs": {"pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}},
    "additionalProperties": False,
}


def _checker(parameters: dict[str, Any] | None = None, **options: Any) -> ArgumentChecker:
    return ArgumentChecker(ToolSchema("t", "d", parameters or _PARAMETERS), **options)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        pytest.param({"i": "5"}, {"i": 5}, id="integer in a string"),
        pytest.param({"i": " -5 "}, {"i": -5}, id="spaces and sign"),
        pytest.param({"i": 5.0}, {"i": 5}, id="whole float"),
        pytest.param({"i": "5.0"}, {"i": 5}, id="whole float in a string"),
        pytest.param({"n": "2.5"}, {"n": 2.5}, id="number in a string"),
        pytest.param({"n": "7"}, {"n": 7}, id="integer for a number"),
        pytest.param({"b": "True"}, {"b": True}, id="boolean in a string"),
        pytest.param({"s": 12}, {"s": "12"}, id="number for a string"),
        pytest.param({"l": "[1, 2]"}, {"l": [1, 2]}, id="JSON array in a string"),
        pytest.param({"l": ["1", 2.0]}, {"l": [1, 2]}, id="inside an array"),
        pytest.param({"o": '{"k": "3"}'}, {"o": {"k": 3}}, id="JSON object in a string, nested"),
        pytest.param({"s": None}, {}, id="null for an optional parameter"),
        pytest.param({"u": None}, {"u": None}, id="null where it is allowed"),
        pytest.param({"u": "4"}, {"u": 4}, id="inside a union"),
        pytest.param({"su": "4"}, {"su": "4"}, id="a string where a string is allowed stays one"),
        pytest.param({"r": ["1", 2]}, {"r": [1, "2"]}, id="through a reference"),
    ],
)
def test_slips_with_one_reading_are_repaired(given_: dict[str, Any], wanted: dict[str, Any]):
    checked = _checker().check(given_)
    assert wanted == checked
    assert [type(each) for each in wanted.values()] == [type(each) for each in checked.values()]


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        pytest.param({"i": "five"}, ["i:", '"five"', "integer"], id="a word for a number"),
        pytest.param({"i": 5.5}, ["i:", "integer"], id="a fraction for an integer"),
        pytest.param({"i": True}, ["i:", "integer"], id="a boolean is no integer"),
        pytest.param({"n": "nan"}, ["n:"], id="not a number"),
        pytest.param({"n": "1_000"}, ["n:"], id="Python's underscores are no JSON"),
        pytest.param({"b": 1}, ["b:"], id="one is not true"),
        pytest.param({"e": "Celsius"}, ["e:", "celsius"], id="enums are not folded"),
        pytest.param({"l": 3}, ["l:", "array"], id="no scalar becomes a list"),
        pytest.param({"o": {}}, ["o.k is required"], id="nested requirement"),
        pytest.param({"l": [1, "x"]}, ["l.1"], id="position in an array"),
        pytest.param({"sx": 1}, ["sx is no parameter"], id="unknown name"),
        pytest.param({"o": "{not json"}, ["o:"], id="broken JSON text"),
        pytest.param([1], ["JSON object"], id="a list"),
        pytest.param("text", ["JSON object"], id="a string"),
        pytest.param(None, ["JSON object"], id="null"),
        pytest.param({"s": object()}, ["Invalid"], id="no JSON at all"),
        pytest.param({1: 2}, ["Invalid"], id="a key that is no string"),
        pytest.param({"i": "\ud800"}, ["i"], id="a lone surrogate"),
        pytest.param({"i": float("inf")}, ["i"], id="infinity"),
    ],
)
def test_the_rest_is_refused_and_the_text_names_the_argument(given_: Any, words: list[str]):
    with pytest.raises(ModelMistake) as caught:
        _checker().check(given_)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_the_message_tells_what_is_missing_unknown_and_expected():
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    with pytest.raises(ModelMistake) as caught:
        _checker(parameters).check({"citty": "Lyon"})
    assert str(caught.value) == (
        "Invalid arguments for t: citty is no parameter, did you mean 'city'?; city is required and missing. "
        'Expected {city: string, unit?: "c"|"f"}.'
    )


def test_only_what_cannot_be_coerced_is_reported():
    with pytest.raises(ModelMistake) as caught:
        _checker().check({"i": "5", "n": "x"})
    assert "n:" in str(caught.value) and "i:" not in str(caught.value)


def test_without_coercion_a_slip_is_a_mistake():
    with pytest.raises(ModelMistake):
        _checker(coerce=False).check({"i": "5"})


def test_a_mapping_that_is_no_dict_is_accepted():
    assert _checker().check(MappingProxyType({"i": 1})) == {"i": 1}


def test_very_deep_arguments_are_refused_not_fatal():
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(100_000):
        inner["k"] = {}
        inner = inner["k"]
    with pytest.raises(ModelMistake):
        _checker().check({"o": deep})


def test_an_integer_deep_inside_reaches_the_function_as_one():
    parameters = {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}}
        },
    }
    checked = _checker(parameters).check({"rows": [{"n": 2.0}]})
    assert type(checked["rows"][0]["n"]) is int


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(derandomize=True, deadline=None)
@given(arguments=st.dictionaries(st.sampled_from([*_PARAMETERS["properties"], "x"]), _VALUES, max_size=6))
def test_whatever_the_model_writes_the_answer_is_valid_arguments_or_a_model_mistake(arguments: dict[str, Any]):
    validator = jsonschema_rs.validator_for(_PARAMETERS)
    try:
        checked = _checker().check(arguments)
    except ModelMistake:
        return
    assert validator.is_valid(checked)


@settings(derandomize=True, deadline=None)
@given(arguments=st.fixed_dictionaries({"i": st.integers(-(2**60), 2**60), "s": st.text(), "b": st.booleans()}))
def test_valid_arguments_are_not_changed(arguments: dict[str, Any]):
    try:
        arguments["s"].encode()
    except UnicodeEncodeError:
        return
    assert _checker().check(arguments) == arguments
