"""How tools are listed in a prompt and read from one: types in words, what is optional, and lists in ToolRL's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from verl_toolrl.data.check import check_rows
from verl_toolrl.data.world.prompts import system_prompt, tool_list
from verl_toolrl.formats.tool_list import read_tools, tools_from_prompt
from verl_toolrl.formats.type_texts import type_schema
from verl_toolrl.matching import normalise_call, wrong_types
from verl_toolrl.toolbox import tool
from verl_toolrl.trajectory import ToolCall

INT, STR, NUMBER = {"type": "integer"}, {"type": "string"}, {"type": "number"}
INTS = {"type": "array", "items": INT}

# rlla: qiancheng0/ToolRL@8cee13e, dataset/rlla_4k; xlam: Salesforce/xlam-function-calling-60k; own: what we write.
TYPES: list[tuple[str, Any, dict[str, Any], bool]] = [
    ("rlla", "str", STR, False),
    ("rlla", "string", STR, False),
    ("rlla", "int, optional", INT, True),
    ("rlla", "Bool, Optional", {"type": "boolean"}, True),
    ("rlla", "float", NUMBER, False),
    ("rlla", "dict", {"type": "object"}, False),
    ("rlla", "List", {"type": "array"}, False),
    ("rlla", "List[int]", INTS, False),
    ("rlla", "List[List[int]]", {"type": "array", "items": INTS}, False),
    ("rlla", "List[Union[int, float]]", {"type": "array", "items": {"type": ["integer", "number"]}}, False),
    ("rlla", "Tuple[float, float]", {"type": "array", "items": NUMBER}, False),
    ("rlla", "Callable[[float], float]", {}, False),
    ("rlla", ["string", "null"], {"type": ["string", "null"]}, False),
    ("rlla", ["string", "integer"], {"type": ["string", "integer"]}, False),
    ("xlam", "List[int], optional", INTS, True),
    ("xlam", "Optional[str]", {"type": ["string", "null"]}, True),
    ("xlam", "Optional[List[int]]", {"anyOf": [INTS, {"type": "null"}]}, True),
    ("xlam", "Optional[Union[int, str]]", {"type": ["integer", "string", "null"]}, True),
    ("xlam", "Optional[Any]", {}, True),
    ("xlam", "Union[int, str]", {"type": ["integer", "string"]}, False),
    ("xlam", "Union[int, str], optional", {"type": ["integer", "string"]}, True),
    ("xlam", "Union[int, None]", {"type": ["integer", "null"]}, True),
    ("xlam", "Union[int, List[int]]", {"anyOf": [INT, INTS]}, False),
    ("xlam", "Union[str, Any]", {}, False),
    ("xlam", "Dict[str, int]", {"type": "object"}, False),
    ("xlam", "set", {"type": "array"}, False),
    ("python", "typing.List[str]", {"type": "array", "items": STR}, False),
    ("python", "Tuple[int, ...]", INTS, False),
    ("python", "List[Any]", {"type": "array"}, False),
    ("python", "int | None", {"type": ["integer", "null"]}, True),
    ("python", "List[int | str]", {"type": "array", "items": {"type": ["integer", "string"]}}, False),
    ("prose", "int (optional)", INT, True),
    ("prose", "int, optional, default 5", INT, True),
    ("prose", "int (1 or 2)", INT, False),
    ("prose", "list of strings", {"type": "array"}, False),
    ("prose", "integer or string", {"type": ["integer", "string"]}, False),
    ("own", "Union[integer, string], optional", {"type": ["integer", "string"]}, True),
    ("own", "List[integer]", INTS, False),
    ("own", "any, optional", {}, True),
    ("odd", "None", {}, False),
    ("odd", "", {}, False),
    ("odd", None, {}, False),
    ("odd", 5, {}, False),
    ("odd", "List[List[int]", {"type": "array", "items": {"type": "array"}}, False),
    ("odd", "]|[", {}, False),
    ("odd", "List[" * 10_000, {"type": "array"}, False),
]


@pytest.mark.parametrize(
    ("declared", "schema", "optional"),
    [case[1:] for case in TYPES],
    ids=[f"{case[0]} {case[1]!s:.40}" for case in TYPES],
)
def test_types_in_words_become_json_schema(declared: Any, schema: dict[str, Any], optional: bool) -> None:
    assert (schema, optional) == type_schema(declared)


def flat(**parameters: Any) -> Any:
    """Read parameters in ToolRL's form."""
    return read_tools([{"name": "f", "parameters": parameters}])[0]["parameters"]


def test_what_has_neither_a_default_nor_the_word_optional_is_required() -> None:
    found = flat(
        a={"type": "int"},
        b={"type": "int, optional"},
        c={"type": "int", "default": 0},
        d={"type": "int", "default": ""},
        e={"type": "Optional[int]"},
        f={"type": "int", "default": None},
    )
    assert ["a", "d"] == found["required"]
    assert "required" not in flat(b={"type": "int, optional"})


def test_a_prompt_of_the_authors_requires_nothing() -> None:
    """47 of their 480 truths leave out what is neither optional by its type nor has a default."""
    listed = json.dumps({"page": {"description": "", "type": "int", "default": ""}})
    (found,) = tools_from_prompt(f"1. Name: f\nDescription: \nParameters: {listed}\n")
    assert {"type": "object", "properties": {"page": {"description": "", "type": "integer"}}} == found["parameters"]


PROPERTIES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("a parameter", {"properties": {"description": "Of it.", "type": "str", "default": ""}}, ["properties"]),
    ("among others", {"kind": {"type": "str"}, "properties": {"type": "dict"}}, ["kind", "properties"]),
    ("a schema", {"type": "object", "properties": {"a": {"type": "string"}}}, ["a"]),
    ("a schema without its type", {"properties": {"a": {"type": "string"}}}, ["a"]),
    ("a schema of any values", {"properties": {"a": True, "type": {}}}, ["a", "type"]),
    ("a schema of nothing", {"properties": {}}, []),
    ("a schema with such a parameter", {"properties": {"properties": {"type": "object"}}}, ["properties"]),
    ("a parameter type", {"type": {"description": "Of it.", "type": "str"}}, ["type"]),
]


@pytest.mark.parametrize(
    ("parameters", "expected"), [case[1:] for case in PROPERTIES], ids=[case[0] for case in PROPERTIES]
)
def test_a_parameter_may_be_called_properties(parameters: dict[str, Any], expected: list[str]) -> None:
    assert expected == list(flat(**parameters)["properties"])


def shown(parameters: dict[str, Any], style: str = "short") -> dict[str, Any]:
    """Return the parameters as the prompt lists them."""
    schema = {"type": "function", "function": {"name": "f", "description": "Do.", "parameters": parameters}}
    line = next(line for line in system_prompt([schema], style=style).splitlines() if line.startswith("Parameters: "))
    return json.loads(line.removeprefix("Parameters: "))


NOTHING = {"type": "object", "properties": {"a": INT, "b": STR}}
REQUIRED: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("one", {**NOTHING, "required": ["a"]}, {"a": "integer", "b": "string, optional"}),
    ("empty", {**NOTHING, "required": []}, {"a": "integer, optional", "b": "string, optional"}),
    ("missing", NOTHING, {"a": "integer, optional", "b": "string, optional"}),
    ("null", {**NOTHING, "required": None}, {"a": "integer, optional", "b": "string, optional"}),
    (
        "at the property",
        {"type": "object", "properties": {"a": {**INT, "required": True}, "b": {**STR, "required": False}}},
        {"a": "integer", "b": "string, optional"},
    ),
]


@pytest.mark.parametrize(
    ("parameters", "expected"), [case[1:] for case in REQUIRED], ids=[case[0] for case in REQUIRED]
)
def test_the_prompt_shows_what_is_not_required_as_optional(parameters: Any, expected: dict[str, str]) -> None:
    assert expected == shown(parameters)
    assert expected == {key: each["type"] for key, each in shown(parameters, "full").items()}


def test_a_function_whose_arguments_all_have_defaults_shows_them_as_optional() -> None:
    @tool
    def ping(times: int = 1, host: str | None = None) -> int:
        """Ping.

        Args:
            times: How often.
            host: Whom.
        """
        return times

    line = 'Parameters: {"times": "integer, optional (how often)", "host": "string, optional (whom)"}'
    assert tool_list([ping]).endswith(line)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (INTS, "List[integer]"),
        ({"type": "array", "items": INTS}, "List[List[integer]]"),
        ({"type": "array", "items": {"type": ["integer", "number"]}}, "List[Union[integer, number]]"),
        ({"type": "array"}, "array"),
        ({"type": "array", "items": {}}, "array"),
        ({"type": ["integer", "string"]}, "Union[integer, string]"),
        ({"type": ["string", "null"]}, "string"),
        ({"type": ["null"]}, "null"),
        ({"anyOf": [INT, INTS, {"type": "null"}]}, "Union[integer, List[integer]]"),
        ({"anyOf": [INT, {"type": "null"}]}, "integer"),
        ({"oneOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}, "any"),
        ({"enum": ["a"]}, "string (a)"),
    ],
)
def test_the_prompt_writes_types_in_its_own_words(schema: dict[str, Any], expected: str) -> None:
    assert {"x": expected} == shown({"type": "object", "properties": {"x": schema}, "required": ["x"]})


READ_BACK = [
    "int",
    "List[int]",
    "List[List[int]]",
    "Union[int, str]",
    "Union[int, List[int]], optional",
    "Optional[str]",
]


@pytest.mark.parametrize("declared", READ_BACK)
def test_types_come_back_from_the_full_prompt(declared: str) -> None:
    """All but `null`: to leave a parameter out says the same."""
    schema, optional = type_schema(declared)
    listed = shown(flat(x={"type": declared, "description": "It."}), "full")["x"]["type"]
    found, still_optional = type_schema(listed)
    assert optional == still_optional
    assert found == (STR if declared == "Optional[str]" else schema)


FITS: list[tuple[str, Any, int]] = [
    ("List[int]", [1, 2], 0),
    ("List[int]", "1", 1),
    ("Union[int, str]", 5, 0),
    ("Union[int, str]", "five", 0),
    ("Union[int, str]", [5], 1),
    ("Union[int, List[int]]", [5], 0),
    ("Union[int, List[int]]", "five", 1),
    ("Optional[str]", None, 0),
    ("Optional[str]", 5, 1),
]


@pytest.mark.parametrize(("declared", "value", "wrong"), FITS, ids=[f"{case[0]} {case[1]}" for case in FITS])
def test_the_watch_and_the_data_check_know_the_types(declared: str, value: Any, wrong: int) -> None:
    call, tools = ToolCall("f", {"x": value}), [{"name": "f", "parameters": {"x": {"type": declared}}}]
    assert (wrong, 0) == wrong_types(call, flat(x={"type": declared}))
    row = {
        "data_source": "x",
        "prompt": [{"role": "user", "content": "p"}],
        "reward_model": {"ground_truth": [{"name": "f", "arguments": {"x": value}}]},
        "extra_info": {"tools": json.dumps(tools)},
    }
    report = check_rows([row], "rows")
    assert (0, wrong) == (report.errors, report.warnings), report.findings


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("List[int]", ["1", 2], [1, 2]),
        ("List[int]", "[1]", [1]),
        ("Union[int, str]", "1", "1"),
        ("int, optional", "1", 1),
    ],
)
def test_values_are_compared_as_their_types_say(declared: str, value: Any, expected: Any) -> None:
    call = normalise_call(ToolCall("f", {"x": value}), flat(x={"type": declared}))
    assert {"x": expected} == call.arguments
