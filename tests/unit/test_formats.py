"""Dialects: tables of texts as a careful person reads them, writing and reading back, and hostile text."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats import DIALECTS, ParsedResponse, get_dialect, parse_response, write_response
from verl_toolrl.formats.json_text import MAX_DEPTH, MAX_ITEMS, MAX_REPAIR
from verl_toolrl.formats.tagged import TaggedDialect
from verl_toolrl.formats.tool_list import read_tools, row_tools, tools_from_prompt
from verl_toolrl.trajectory import ToolCall

CALL = '{"name": "f", "parameters": {"x": 1}}'
HCALL = '{"name": "f", "arguments": {"x": 1}}'
F = ("f", {"x": 1})
G = ("g", {})


def found(parsed: ParsedResponse) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for call in parsed.calls]


def block(*lines: str) -> str:
    return "\n".join(["<think> t </think>", "<tool_call>", *lines, "</tool_call>"])


def value(literal: str) -> str:
    return f'{{"name": "f", "parameters": {{"x": {literal}}}}}'


def message(arguments: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


BLOCK = f"<tool_call>\n{CALL}\n</tool_call>"
HBLOCK = f"<tool_call>{HCALL}</tool_call>"
XML = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
ACTION = 'Thought: t\nAction: f\nAction Input: {"x": 1}'

# (id, dialect, text, calls, well-formed)
READ = [
    ("one line", "toolrl", block(CALL), [F], True),
    ("two lines", "toolrl", block(CALL, '{"name": "g", "parameters": {}}'), [F, G], True),
    ("two blocks", "toolrl", f"{block(CALL)}\n{BLOCK}", [F, F], True),
    ("pretty-printed", "toolrl", block(json.dumps(json.loads(CALL), indent=4)), [F], True),
    ("inline", "toolrl", f"<think>t</think><tool_call>{CALL}</tool_call>", [F], True),
    ("CRLF", "toolrl", block(CALL).replace("\n", "\r\n"), [F], True),
    ("array", "toolrl", block(f"[{CALL}, {CALL}]"), [F, F], False),
    ("code fence", "toolrl", block("```json", CALL, "```"), [F], False),
    ("trailing comma", "toolrl", block(CALL + ","), [F], False),
    ("single quotes", "toolrl", block("{'name': 'f', 'parameters': {'x': 1}}"), [F], False),
    ("two broken lines", "toolrl", block(CALL + ",", CALL + ","), [F, F], False),
    ("two lines without their brace", "toolrl", block(CALL[:-1], CALL[:-1]), [F, F], False),
    ("broken array", "toolrl", block(f"[{CALL}, {CALL},]"), [F, F], False),
    ("missing brace", "toolrl", block(CALL[:-1]), [F], False),
    ("good, then broken beyond repair", "toolrl", block(CALL, "nonsense"), [F], False),
    ("raw line break in a string", "toolrl", block(value('"a\nb"')), [("f", {"x": "a\nb"})], False),
    ("tag in a string", "toolrl", block(value('"a </tool_call> b"')), [("f", {"x": "a </tool_call> b"})], True),
    ("unicode escapes", "toolrl", block(value('"\\u00e9\\ud83d\\ude00"')), [("f", {"x": "é😀"})], True),
    ("large integer", "toolrl", block(value(str(10**29 + 1))), [("f", {"x": 10**29 + 1})], True),
    ("last duplicate key wins", "toolrl", block('{"name": "f", "parameters": {"x": 0, "x": 1}}'), [F], True),
    ("quoted in the thought", "toolrl", f"<think> maybe {BLOCK} </think>\n<response> no </response>", [], True),
    ("tag mentioned in the thought", "toolrl", f"<think> the <tool_call> tag </think>\n{BLOCK}", [F], True),
    ("thought never closed", "toolrl", f"<think> t\n{BLOCK}", [], False),
    ("no thought", "toolrl", BLOCK, [F], False),
    ("thought behind the calls", "toolrl", f"{BLOCK}\n<think> t </think>", [F], False),
    ("response first", "toolrl", f"<think> t </think>\n<response> r </response>\n{BLOCK}", [F], False),
    ("calls, then a response", "toolrl", f"{block(CALL)}\n<response> r </response>", [F], True),
    ("text behind", "toolrl", f"{block(CALL)}\nextra", [F], False),
    ("unclosed block", "toolrl", f"<think> t </think>\n<tool_call>\n{CALL}", [], False),
    ("opened again, not closed", "toolrl", f"<think> t </think>\n<tool_call>\n{CALL}\n{BLOCK}", [F], False),
    ("empty block", "toolrl", block(""), [], False),
    ("number", "toolrl", block("42"), [], False),
    ("null name", "toolrl", block('{"name": null, "parameters": {}}'), [], False),
    ("object as name", "toolrl", block('{"name": {"a": 1}, "parameters": {}}'), [], False),
    ("list as parameters", "toolrl", block('{"name": "f", "parameters": [1]}'), [], False),
    ("no parameters", "toolrl", block('{"name": "g"}'), [G], False),
    ("extra key", "toolrl", block('{"name": "f", "parameters": {"x": 1}, "why": "so"}'), [F], False),
    ("id is harmless", "toolrl", block('{"name": "f", "parameters": {"x": 1}, "id": "call_1"}'), [F], True),
    ("Hermes' key is another dialect", "toolrl", block(HCALL), [], False),
    ("nothing", "toolrl", "", [], False),
    ("two blocks", "hermes", f"{HBLOCK}\n{HBLOCK}", [F, F], True),
    ("two objects in a block", "hermes", f"<tool_call>\n{HCALL}\n{HCALL}\n</tool_call>", [F, F], True),
    ("array, as Tool-N1", "hermes", f"<tool_call>[{HCALL}]</tool_call>", [F], True),
    ("text before", "hermes", f"Let me look.\n{HBLOCK}", [F], True),
    ("thought without its opening tag", "hermes", f"hm {HBLOCK} no</think>\n\n{HBLOCK}", [F], True),
    ("ToolRL's key is another dialect", "hermes", f"<tool_call>{CALL}</tool_call>", [], False),
    (
        "arguments as text",
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        [F],
        False,
    ),
    ("second call cut", "hermes", f"{HBLOCK}<tool_call>{HCALL[:20]}", [F], False),
    ("plain answer", "hermes", "It is sunny.", [], True),
    ("XML", "qwen3_coder", XML, [F], True),
    ("XML cut", "qwen3_coder", XML[:50], [], False),
    ("XML without its last tag", "qwen3_coder", "<tool_call>\n<function=g>\n</function>", [], False),
    ("object", "llama3_json", CALL, [F], True),
    ("two objects", "llama3_json", f"{CALL}; {CALL}", [F, F], True),
    ("behind a tag", "llama3_json", f"So: <|python_tag|>{CALL}", [F], True),
    ("cut", "llama3_json", CALL[:-1], [], False),
    ("JSON that is an answer", "llama3_json", '{"a": 1}', [], True),
    ("list", "pythonic", "[f(x=1), g()]", [F, G], True),
    ("list cut", "pythonic", "[f(x=1), g(", [], False),
    ("expression is not evaluated", "pythonic", "[f(x=__import__('os').getcwd())]", [], False),
    ("v11", "mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', [F, G], True),
    ("v3", "mistral", f"[TOOL_CALLS] [{HCALL}]", [F], True),
    ("cut", "mistral", '[TOOL_CALLS]f[ARGS]{"x": 1', [], False),
    ("one action", "react", ACTION, [F], True),
    ("invented observation", "react", f"{ACTION}\nObservation: 3\nAction: g\nAction Input: {{}}", [F], False),
    ("pretty input", "react", 'Thought: t\nAction: f\nAction Input: {\n  "x": 1\n}', [F], True),
    ("no input", "react", "Thought: t\nAction: f", [], False),
    ("input cut", "react", ACTION[:-1], [], False),
    ("final answer", "react", "Thought: t\nFinal Answer: 42", [], True),
    ("message", "openai", message('{"x": 1}'), [F], True),
    ("arguments as an object", "openai", message({"x": 1}), [F], False),
    ("arguments cut", "openai", message('{"x": 1'), [], False),
    ("message cut", "openai", '{"role": "assistant", "tool_calls": [', [], False),
]


@pytest.mark.parametrize(
    ("dialect", "text", "calls", "well_formed"), [row[1:] for row in READ], ids=[f"{row[1]}: {row[0]}" for row in READ]
)
def test_a_text_is_read_as_a_careful_person_reads_it(
    dialect: str, text: Any, calls: list[Any], well_formed: bool
) -> None:
    parsed = parse_response(text, dialect)
    assert (calls, well_formed) == (found(parsed), parsed.well_formed), parsed


def test_parts_and_spans_are_reported() -> None:
    text = f"<think> why </think>\n<tool_call>\n{CALL}\n{{broken\n</tool_call>\n<response> there </response>"
    parsed = parse_response(text)
    assert ("why", "there", 1) == (parsed.thought, parsed.response, len(parsed.unparsed))
    assert CALL == text[slice(*(parsed.calls[0].span or ()))]
    assert text[slice(*parsed.unparsed[0].span)].startswith("{broken")


def test_spans_of_pythonic_calls_count_characters_not_bytes() -> None:
    text = "[f(x='é😀'),\n g(y=1)]"
    assert ["f(x='é😀')", "g(y=1)"] == [text[slice(*(c.span or ()))] for c in parse_response(text, "pythonic").calls]


def test_a_schema_decides_the_type_of_an_xml_value() -> None:
    tools = [{"name": "f", "parameters": {"properties": {"zip": {"type": "string"}, "on": {"type": "boolean"}}}}]
    text = (
        "<tool_call>\n<function=f>\n<parameter=zip>\n02139\n</parameter>\n"
        "<parameter=on>\nTrue\n</parameter>\n</function>\n</tool_call>"
    )
    assert [("f", {"zip": "02139", "on": True})] == found(parse_response(text, "qwen3_coder", tools=tools))


MARKS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<response>", "</response>", "[TOOL_CALLS]", "[ARGS]"),
    *(
        "[THINK]",
        "<|python_tag|>",
        "<|python_end|>",
        "</parameter>\n",
        "</function>\n</tool_call>",
        "\n<parameter=x>\n",
    ),
    *("\nAction: f\nAction Input: {}", '"', "\\", "```", "5", "true", "\n", "é", "\u2028", "\r", " "),
]
TEXTS = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(MARKS), max_size=4).map("".join))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
NAMES = st.one_of(st.sampled_from(["get_weather", "a.b", "Domain WHOIS API"]), TEXTS.filter(bool))
KEYS = st.one_of(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), TEXTS)
CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(KEYS, VALUES, max_size=4)), min_size=1, max_size=4)
PLAIN_CALLS = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from(["get_weather", "a.b", "f"]),
        st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), VALUES, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def same(calls: Any) -> list[str]:
    return [json.dumps([call.name, dict(call.arguments)], sort_keys=True) for call in calls]


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(PLAIN_CALLS, st.one_of(st.none(), st.sampled_from(["", "I think."])))
def test_writing_then_reading_is_the_identity(dialect: str, calls: list[ToolCall], thought: str | None) -> None:
    """Any values, under names that every dialect can express."""
    parsed = parse_response(write_response(calls, dialect, thought=thought), dialect)
    assert same(calls) == same(parsed.calls)
    assert not (parsed.unparsed or parsed.repaired or parsed.foreign)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(CALLS, st.one_of(st.none(), TEXTS))
def test_what_a_dialect_cannot_express_it_refuses_and_the_rest_is_the_identity(
    dialect: str, calls: list[ToolCall], thought: str | None
) -> None:
    try:
        text = write_response(calls, dialect, thought=thought)
    except ConfigError:
        return
    parsed = parse_response(text, dialect)
    assert same(calls) == same(parsed.calls)
    assert not (parsed.unparsed or parsed.repaired or parsed.foreign)


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>"]
PIECES = [*TAGS, "\n", CALL, "a", '{"a": 1}', " "]


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=10), st.booleans())
def test_the_fast_path_of_toolrl_reads_what_the_full_reader_reads(pieces: list[str], framed: bool) -> None:
    body = "".join(pieces)
    text = f"<think> t </think>\n<tool_call>\n{body}\n</tool_call>" if framed else body
    assert TaggedDialect.read(get_dialect("toolrl"), text) == get_dialect("toolrl").read(text)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_text_makes_a_reader_raise(dialect: str, text: str) -> None:
    assert isinstance(parse_response(text, dialect), ParsedResponse)


def test_nesting_is_limited_the_same_at_every_depth_of_the_stack() -> None:
    def nested(depth: int) -> str:
        # parameters and the object around it are two levels
        return block('{"name": "f", "parameters": {"x": ' + "[" * (depth - 2) + "]" * (depth - 2) + "}}")

    def below(frames: int, text: str) -> ParsedResponse:
        return parse_response(text) if not frames else below(frames - 1, text)

    for frames in (0, 300):
        assert (1, 0) == tuple(len(below(frames, nested(depth)).calls) for depth in (MAX_DEPTH, MAX_DEPTH + 2))


def test_a_broken_block_beyond_the_repair_limit_is_reported_and_not_repaired() -> None:
    broken = '{"name": "f", "parameters": {"x": "' + "a" * MAX_REPAIR + '"},}'
    parsed = parse_response(block(broken))
    assert ((), 1) == (parsed.calls, len(parsed.unparsed))


def test_what_stands_behind_the_limit_of_items_is_reported_as_unread() -> None:
    parsed = parse_response(block(*[CALL] * (MAX_ITEMS + 5)))
    assert (MAX_ITEMS, 1) == (len(parsed.calls), len(parsed.unparsed))


def test_conformance_with_the_fixtures_of_canitoolcall() -> None:
    """185 cases of four families. One is read otherwise on purpose: a call inside a thought that is never closed."""
    fixtures = pytest.importorskip("canitoolcall.fixtures", reason="needs the package canitoolcall")
    dialects = {"qwen3-hermes": "hermes", "qwen3-xml": "qwen3_coder", "mistral": "mistral"}
    wrong, count = [], 0
    for case in fixtures.load_fixtures():
        if case.family not in (*dialects, "llama"):
            continue
        dialect = dialects.get(case.family) or ("pythonic" if "/l4" in case.id else "llama3_json")
        in_thought = (case.generation_prompt or "").rstrip().endswith("<think>")
        parsed = parse_response(case.raw_output, dialect, tools=case.tools, in_thought=in_thought)
        count += 1
        if case.expected is None:
            right = not parsed.calls
        else:
            expected = case.expected
            right = (
                same(expected.tool_calls) == same(parsed.calls)
                and (expected.content or "").strip() == (parsed.response or "")
                and (expected.reasoning_content or "").strip() == (parsed.thought or "")
            )
        if not right:
            wrong.append(case.id)
    assert (["qwen3-xml/llamacpp-q35-call-inside-think"], 185) == (wrong, count)


def test_an_unknown_dialect_names_the_nearest_and_a_number_is_no_response() -> None:
    with pytest.raises(ConfigError, match="unknown dialect 'herms', did you mean 'hermes'"):
        parse_response("", "herms")
    with pytest.raises(ConfigError, match="response must be text, got int"):
        parse_response(5)


def test_tools_are_read_from_toolrls_prompt() -> None:
    prompt = (
        "In your response, you can use the following tools:\n"
        "1. Name: get news \nDescription: Retrieve news.\nIn two lines.\n"
        'Parameters: {"page": {"description": "The page.", "type": "int, optional", "default": "1"}, '
        '"q": {"description": "", "type": "str", "default": ""}}\n'
        "2. Name: ping\nDescription: \nParameters: {}\n\n**Steps for Each Turn**\n1. **Think:** x"
    )
    news, ping = tools_from_prompt(prompt)
    assert ("get news ", "Retrieve news.\nIn two lines.", "ping") == (news["name"], news["description"], ping["name"])
    assert {"page": "integer", "q": "string"} == {k: v["type"] for k, v in news["parameters"]["properties"].items()}
    assert "default" not in news["parameters"]["properties"]["q"]
    assert read_tools([{"type": "function", "function": {"name": "a"}}])[0]["name"] == "a"


LISTED = "1. Name: prompted\nDescription: x\nParameters: {}\n"
ROW_TOOLS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("column as text", {"tools": '[{"name": "a"}]', "extra_info": {"tools": '[{"name": "b"}]'}}, ["a"]),
    ("column as a list", {"tools": [{"type": "function", "function": {"name": "a"}}]}, ["a"]),
    ("column as an array", {"tools": numpy.array([{"name": "a"}], dtype=object)}, ["a"]),
    ("empty column", {"tools": [], "extra_info": {"tools": '[{"name": "b"}]'}}, []),
    ("no column", {"tools": None, "extra_info": {"tools": '[{"name": "b"}]'}}, ["b"]),
    ("prompt", {"extra_info": {}, "prompt": [{"role": "system", "content": LISTED}]}, ["prompted"]),
    ("nothing", {"prompt": [{"role": "user", "content": "x"}]}, []),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in ROW_TOOLS], ids=[case[0] for case in ROW_TOOLS])
def test_tools_of_a_row_come_from_the_first_place_that_names_some(row: dict[str, Any], expected: list[str]) -> None:
    assert expected == [tool["name"] for tool in row_tools(row)]


def test_a_column_of_tools_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DatasetError, match=r"row 3: column 'tools': \[0\] has no 'name'"):
        row_tools({"tools": [{}]}, "row 3")
