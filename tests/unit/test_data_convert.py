"""Other people's layouts to verl's rows, on samples made by hand; bad rows are named with what was found and wanted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.data.bracket_calls import answer_calls, bracket_calls
from verl_toolrl.data.check import check_rows
from verl_toolrl.data.dialogues import dialogue_rows, sft_rows
from verl_toolrl.data.layouts import LAYOUTS, detect_layout
from verl_toolrl.data.rlla import released_row, released_split
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rewards import configured_reward
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.schema import validate_row

CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"]}
OPENAI: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": CITY}}],
    "messages": [
        {"role": "system", "content": "Today is Monday."},
        {"role": "user", "content": "Is it warm in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "name": "weather", "content": '{"celsius": 21}'},
        {"role": "assistant", "content": "Yes, 21 degrees."},
        {"role": "user", "content": "Thanks."},
    ],
}
TOOLACE: dict[str, Any] = {
    "system": "You compose functions. Here is a list of functions in JSON format that you can invoke:\n"
    '[{"name": "Weather API", "description": "Weather.", "parameters": {"type": "dict", "properties": {"city": '
    '{"type": "string"}, "days": {"type": "int"}}}}, {"name": "now", "description": "Time.", "parameters": '
    '{"type": "dict", "properties": {}}}]\nPut calls as [func1(a=b)].',
    "conversations": [
        {"from": "user", "value": "Weather in Oslo, and the time?"},
        {"from": "assistant", "value": '[Weather API(city="Oslo, Norway", days=2), now()]'},
        {"from": "tool", "value": '[{"name": "Weather API", "results": {"c": 3}}, {"name": "now", "results": "9:00"}]'},
        {"from": "assistant", "value": "It is 9:00 and 3 degrees."},
    ],
}
XLAM: dict[str, Any] = {
    "id": 7,
    "query": "Weather in Oslo?",
    "answers": '[{"name": "weather", "arguments": {"city": "Oslo"}}]',
    "tools": '[{"name": "weather", "description": "Weather.", "parameters": {"city": {"description": "Where", '
    '"type": "str", "default": "Rome"}, "days": {"description": "How many", "type": "int, optional"}}}]',
}
IRRELEVANT = {**XLAM, "query": "Sing a song.", "answers": "[]"}
HAMMER: dict[str, Any] = {
    "instruction": "[BEGIN OF TASK INSTRUCTION]\nCall.\n[END OF TASK INSTRUCTION]\n\n[BEGIN OF AVAILABLE TOOLS]\n"
    '[{"name": "xQ_7", "description": "Weather.", "parameters": {"kK.z": {"description": "Where", "type": "str"}}}]\n'
    "[END OF AVAILABLE TOOLS]\n\n[BEGIN OF QUERY]\nWeather in Oslo?\n[END OF QUERY]\n\n",
    "input": "",
    "output": '```\n[{"name": "xQ_7", "arguments": {"kK.z": "Oslo"}}]\n```',
}
ROWS = {"openai": OPENAI, "toolace": TOOLACE, "xlam": XLAM, "hammer": HAMMER}


def rows_of(source: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return dialogue_rows(LAYOUTS[detect_layout(source)](source), data_source="x", **options)


def truths(source: dict[str, Any], **options: Any) -> list[Any]:
    found = [parse_ground_truth(row["reward_model"]["ground_truth"]) for row in rows_of(source, **options)]
    return [[(call.name, dict(call.arguments)) for call in truth.calls] or truth.response for truth in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (OPENAI, [[("weather", {"city": "Oslo"})], "Yes, 21 degrees."]),
        (TOOLACE, [[("Weather API", {"city": "Oslo, Norway", "days": 2}), ("now", {})], "It is 9:00 and 3 degrees."]),
        (XLAM, [[("weather", {"city": "Oslo"})]]),
        (IRRELEVANT, ["None of the tools can serve this request."]),
        (HAMMER, [[("xQ_7", {"kK.z": "Oslo"})]]),
    ],
    ids=["openai", "toolace", "xlam", "irrelevant", "hammer"],
)
def test_each_answer_is_a_row_with_its_reference(source: dict[str, Any], expected: list[Any]) -> None:
    assert expected == truths(source)
    assert expected[-1:] == truths(source, last_only=True)


@pytest.mark.parametrize("source", [*ROWS.values(), IRRELEVANT], ids=[*ROWS, "irrelevant"])
@pytest.mark.parametrize("style", ["full", "short"])
def test_rows_pass_our_own_check(source: dict[str, Any], style: str) -> None:
    rows = rows_of(source, style=style)
    for row in rows:
        validate_row(row)
    report = check_rows(rows, "rows")
    assert (0, 0) == (report.errors, report.warnings), report.findings


def test_the_dialogue_before_an_answer_is_its_history() -> None:
    first, second = (row["prompt"][1]["content"] for row in rows_of(OPENAI))
    assert "**Dialogue Records History**\n<user> Is it warm in Oslo? </user>" == first
    wanted = (
        '</think>\n<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}\n</tool_call>\n'
        '<obs> [{"name": "weather", "results": {"celsius": 21}}] </obs>'
    )
    assert second.startswith(first) and second.endswith(wanted)


def test_results_of_parallel_calls_stand_in_one_observation() -> None:
    text = rows_of(TOOLACE)[1]["prompt"][1]["content"]
    assert 1 == text.count("<obs>") and '"results": "9:00"}] </obs>' in text


def test_the_tools_of_a_row_stand_in_its_prompt_and_as_schemas() -> None:
    row = rows_of(XLAM)[0]
    assert "1. Name: weather\nDescription: Weather.\n" in row["prompt"][0]["content"]
    schema = json.loads(row["extra_info"]["tools"])[0]["function"]["parameters"]["properties"]
    assert ("string", "Rome", "integer") == (schema["city"]["type"], schema["city"]["default"], schema["days"]["type"])


@pytest.mark.parametrize(
    ("style", "lines"),
    [
        (
            "full",
            {
                "city": {"description": "Where", "type": "string, optional", "default": "Rome"},
                "days": {"description": "How many", "type": "integer, optional", "default": ""},
                "hours": {"description": "Which", "type": "List[integer]", "default": ""},
            },
        ),
        (
            "short",
            {
                "city": "string, optional (where)",
                "days": "integer, optional (how many)",
                "hours": "List[integer] (which)",
            },
        ),
    ],
)
def test_a_prompt_says_which_parameters_may_be_left_out(style: str, lines: dict[str, Any]) -> None:
    """xLAM's truths leave out what is optional or has a default."""
    (tool,) = json.loads(XLAM["tools"])
    tool["parameters"]["hours"] = {"description": "Which", "type": "List[int]"}
    (row,) = rows_of(
        changed(XLAM, tools=json.dumps([tool]), answers=XLAM["answers"].replace("}", ', "hours": [1]}', 1)), style=style
    )
    assert f"\nParameters: {json.dumps(lines)}\n" in row["prompt"][0]["content"]
    assert ["hours"] == json.loads(row["extra_info"]["tools"])[0]["function"]["parameters"]["required"]
    report = check_rows([row], "row")
    assert (0, 0) == (report.errors, report.warnings), report.findings


def test_a_result_has_the_name_of_the_call_that_its_id_belongs_to() -> None:
    """Current messages of role `tool` have no name; where one is given it is kept."""
    calls = [
        {"id": number, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for number in ("a", "b")
    ]
    messages = [
        OPENAI["messages"][1],
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "warm"},
        {"role": "tool", "tool_call_id": "a", "name": "other", "content": "cold"},
        {"role": "tool", "tool_call_id": "c", "content": "wet"},
        {"role": "assistant", "content": "Well."},
    ]
    wanted = [
        {"name": "weather", "results": "warm"},
        {"name": "other", "results": "cold"},
        {"name": None, "results": "wet"},
    ]
    assert (
        f"<obs> {json.dumps(wanted)} </obs>" in rows_of(changed(OPENAI, messages=messages))[1]["prompt"][1]["content"]
    )


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "text"])
def test_the_older_api_is_read(as_text: bool) -> None:
    functions: Any = [OPENAI["tools"][0]["function"]]
    messages = [
        {"role": "user", "content": "Is it warm in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
        },
        {"role": "function", "name": "weather", "content": "21"},
        {"role": "assistant", "content": "Yes."},
    ]
    source = {"messages": messages, "functions": json.dumps(functions) if as_text else functions}
    assert [[("weather", {"city": "Oslo"})], "Yes."] == truths(source)
    row = rows_of(source)[1]
    assert '<obs> [{"name": "weather", "results": 21}] </obs>' in row["prompt"][1]["content"]
    assert OPENAI["tools"] == json.loads(row["extra_info"]["tools"])


TOOLACE_LIST = '[{"name": "now", "description": "Time.", "parameters": {"type": "dict", "properties": {}}}]'
# The system text of Team-ACE/ToolACE, the same in most of its rows, and what it has beside the list in others.
TOOLACE_TEXT = (
    "You are an expert in composing functions. If none of the function can be used, point it out. "
    "You should only return the function call in tools call sections.\n"
    "Here is a list of functions in JSON format that you can invoke:\n"
    f"{TOOLACE_LIST}. \nShould you decide to return the function call(s). \nPut it in the format of "
    "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\n"
    "NO other text MUST be included. \n"
)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (TOOLACE_LIST, None),
        (
            TOOLACE_TEXT,
            "You are an expert in composing functions. If none of the function can be used, point it out.",
        ),
        (f"Today is 2025-01-07.\n{TOOLACE_LIST}", "Today is 2025-01-07."),
        (f"{TOOLACE_LIST}\nToday is 2025-01-07.", "Today is 2025-01-07."),
        (
            f"Today is 2025-01-07.\n{TOOLACE_TEXT}Prices are in euros.",
            "Today is 2025-01-07.\nYou are an expert in composing functions. If none of the function can be used, "
            "point it out.\n\nPrices are in euros.",
        ),
    ],
    ids=["a list alone", "its own form alone", "a date before", "a date behind", "around all"],
)
def test_what_toolace_says_beside_its_tools_is_kept(system: str, expected: str | None) -> None:
    dialogue = LAYOUTS["toolace"](changed(TOOLACE, system=system))
    assert (["now"], expected) == ([tool["function"]["name"] for tool in dialogue.tools], dialogue.system)


def test_a_date_of_toolace_reaches_the_prompt() -> None:
    system = f"Today is 2025-01-07. {TOOLACE['system']}"
    prompt = rows_of(changed(TOOLACE, system=system))[0]["prompt"][0]["content"]
    assert prompt.startswith("Today is 2025-01-07. You compose functions.\n\nYou are")


def test_instructions_of_the_source_come_before_ours() -> None:
    assert rows_of(OPENAI)[0]["prompt"][0]["content"].startswith("Today is Monday.\n\nYou are")


def test_thoughts_of_the_source_are_kept() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think> Be polite. </think>Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye.", "reasoning_content": "They leave."},
    ]
    texts = [row["reward_model"]["ground_truth"] for row in rows_of({**OPENAI, "messages": messages})]
    assert ["<think> Be polite. </think>\n<response> Hello. </response>", "They leave." in texts[1]] == [texts[0], True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[f(a="x, y(z)", b=[1, 2], c={"k": true})]', [("f", {"a": "x, y(z)", "b": [1, 2], "c": {"k": True}})]),
        ("[f(a='it\\'s'), g(b=-1.5, c=None)]", [("f", {"a": "it's"}), ("g", {"b": -1.5, "c": None})]),
        ("[get/user info(user-id=3)]", [("get/user info", {"user-id": 3})]),
        ("[f()]", [("f", {})]),
        ('[a(b)(c="d")]', [("a(b)", {"c": "d"})]),
    ],
    ids=["nested", "quotes", "odd names", "empty", "brackets in a name"],
)
def test_calls_in_brackets_are_read(text: str, expected: list[Any]) -> None:
    calls = bracket_calls(text, ["get/user info", "a(b)"], "x")
    assert expected == [(call.name, dict(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[now()]", ["now"]),
        ("It is nine.", []),
        ("[Note (see above): the tools cannot do that.]", []),
        ("[I know (more or less) what you mean]", []),
        ("[other(a=1)]", ["other"]),  # can be read; that it is not on offer is said later
        ("I called now() and found [1] this.", []),
        ("See [the docs](now) or the list [other, more].", []),
        ("[Not now, later.]", []),
        ("I will call [other()]", []),
    ],
    ids=["call", "text", "note", "part of a name", "another tool", "call outside", "link", "words", "not on offer"],
)
def test_a_text_in_brackets_is_no_call(text: str, expected: list[str]) -> None:
    assert expected == [call.name for call in answer_calls(text, ["now"], "x")]


@pytest.mark.parametrize(
    "text",
    [
        "[now(see above)]",
        "[Note (see above), now (a=b)]",
        "[now(]",
        "[now(",
        "[now]",
        '[now, Weather API(city="Oslo")]',
        "[other(a=1), now]",
        "I will call [now()]",
        "[now()] now",
        "[now()].",
        "[[now()]]",
        "[now()]\n[now()]",
        "```\n[now()]\n```",
    ],
)
def test_a_call_of_a_tool_on_offer_that_cannot_be_read_is_a_mistake(text: str) -> None:
    with pytest.raises(DatasetError, match="^x: "):
        answer_calls(text, ["now", "Weather API"], "x")


@pytest.mark.parametrize("text", ["[]", "[ ]", "[,]"])
def test_an_empty_list_of_calls_says_nothing_and_is_a_mistake(text: str) -> None:
    with pytest.raises(DatasetError, match="^x: .*an empty list of calls; wanted calls or a text"):
        answer_calls(text, ["now"], "x")


def changed(source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**source, **changes}.items() if value is not ...}


def said(text: str) -> dict[str, Any]:
    return changed(OPENAI, messages=[*OPENAI["messages"][:2], {"role": "assistant", "content": text}])


BAD: list[tuple[str, Any, str]] = [
    ("no layout", {"text": "x"}, r"keys \['text'\]: no layout; known: openai"),
    ("a text", "x", "keys str"),
    ("unknown tool", changed(XLAM, answers='[{"name": "wether", "arguments": {}}]'), "calls 'wether', .*weather"),
    ("no JSON", changed(XLAM, answers="[{"), "answers: .*not JSON"),
    ("no list", changed(XLAM, answers='{"a": 1}'), "answers: dict, wanted a list"),
    ("no name", changed(XLAM, answers='[{"arguments": {}}]'), r"answers\[0\]: .*wanted an object with name"),
    ("arguments", changed(XLAM, answers='[{"name": "weather", "arguments": [1]}]'), "are list, wanted an object"),
    ("no query", changed(XLAM, query=None), "query: NoneType .*wanted str"),
    ("no tools in the text", changed(TOOLACE, system="Hello."), "system: .*no JSON list of tools"),
    ("speaker", changed(TOOLACE, conversations=[{"from": "me", "value": "x"}]), "from 'me', wanted user"),
    (
        "value without quotes",
        changed(TOOLACE, conversations=[*TOOLACE["conversations"][:1], {"from": "assistant", "value": "[now(a=b)]"}]),
        "now: a=b, wanted a literal",
    ),
    (
        "calls in a text",
        changed(TOOLACE, conversations=[TOOLACE["conversations"][0], {"from": "gpt", "value": "I call [now()]"}]),
        r"conversations\[1\]: 'I call \[now\(\)\]' has 'now' in brackets, .*wanted \[Name",
    ),
    ("role", changed(OPENAI, messages=[{"role": "me", "content": "x"}]), "role 'me', wanted system"),
    ("result first", changed(OPENAI, messages=[{"role": "tool", "content": "x"}]), "without a call before it"),
    ("nothing to learn", changed(OPENAI, messages=[{"role": "user", "content": "x"}]), "no answer of the assistant"),
    ("starts with an answer", changed(OPENAI, messages=[{"role": "assistant", "content": "x"}]), "begins with answer"),
    ("marks", changed(HAMMER, instruction="Hello."), "no .BEGIN OF AVAILABLE TOOLS."),
    ("tags in an answer", said("</response>"), "with tags"),
]  # fmt: skip


@pytest.mark.parametrize("layout", ROWS)
def test_native_rows_are_what_tool_n1s_reward_can_score(layout: str) -> None:
    """Tools in a column, a thought asked for, and a right answer in the model's dialect earns all."""
    reward = configured_reward({"reward": "tool_n1", "dialect": "hermes"})
    for row, supervised in zip(found := rows_of(ROWS[layout], format="native"), sft_rows(found), strict=True):
        validate_row(row)
        assert "<think>" in row["prompt"][0]["content"] and "tool_call" not in row["prompt"][0]["content"]
        assert {"system", "user"} <= {message["role"] for message in row["prompt"]}
        assert row["tools"] == row["extra_info"]["tools"] == supervised["tools"]
        answer = supervised["messages"][-1]["content"]
        truth = row["reward_model"]["ground_truth"]
        assert 1.0 == reward(response=answer, ground_truth=truth, total_steps=1).score, answer
        assert 0.0 == reward(response="I do not know.", ground_truth=truth, total_steps=1).score


def test_earlier_calls_of_native_rows_are_messages_with_their_results() -> None:
    last = rows_of(OPENAI, format="native")[-1]["prompt"]
    roles = [message["role"] for message in last]
    assert "tool" in roles and roles[roles.index("tool") - 1] in ("assistant", "tool")
    assert "<tool_call>" in next(message["content"] for message in last if message["role"] == "assistant")


@pytest.mark.parametrize(("source", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_row_says_what_was_found_and_wanted(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        rows_of(source)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_convert_writes_files_that_stay_apart(tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    source.write_text("".join(json.dumps({**row, "id": number}) + "\n" for number in range(5) for row in ROWS.values()))
    done = run("convert", source, tmp_path / "out", "--test-share", 0.2, "--sft")
    assert 0 == done.exit_code, done.output
    rows = {
        split: pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist() for split in ("train", "test", "sft")
    }
    # 20 dialogues, 4 of them to test; OpenAI's and ToolACE's have two answers.
    assert 30 == len(rows["train"]) + len(rows["test"]) and len(rows["sft"]) == len(rows["train"])
    assert [*range(len(rows["train"]))] == [row["extra_info"]["index"] for row in rows["train"]]
    assert set(ROWS) == {row["data_source"] for row in [*rows["train"], *rows["test"]]}
    again = run("convert", source, tmp_path / "again", "--test-share", 0.2, "--sft")
    assert 0 == again.exit_code
    assert rows["test"] == pq.read_table(tmp_path / "again" / "test.parquet").to_pylist()


def test_bad_rows_stop_a_conversion_by_number_or_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "x.json"
    source.write_text(json.dumps([XLAM, {"text": 1}, XLAM, changed(XLAM, query=None)]))
    stopped = run("convert", source, tmp_path / "out")
    assert 0 != stopped.exit_code and not (tmp_path / "out").exists()
    assert "2 of 4 rows are bad" in str(stopped.exception) and "row 1: keys" in str(stopped.exception)
    assert "row 3: query" in str(stopped.exception)
    done = run("convert", source, tmp_path / "out", "--skip-bad", "--test-share", 0)
    assert 0 == done.exit_code and 2 == len(pq.read_table(tmp_path / "out" / "train.parquet"))
    assert "is no empty folder" in str(run("convert", source, tmp_path / "out").exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dialect", "hermes"], "--dialect hermes: belongs to --format native, but the format is toolrl"),
        (["--dialect", "x", "--format", "toolrl", "--sft"], "--dialect x: belongs to --format native"),
        (["--style", "full", "--format", "native"], "--style full: belongs to --format toolrl, but .* is native"),
        (["--style", "shrt"], "did you mean 'short'"),
        (["--dialect", "herms", "--format", "native"], "did you mean 'hermes'"),
    ],
)
def test_an_option_without_effect_or_with_an_unknown_value_is_refused(
    tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "x.json").write_text(json.dumps([XLAM]))
    stopped = run("convert", tmp_path / "x.json", tmp_path / "out", *options)
    assert isinstance(stopped.exception, ConfigError) and not (tmp_path / "out").exists()
    assert re.search(message, str(stopped.exception))


@pytest.mark.parametrize("options", [["--style", "short"], ["--format", "native", "--dialect", "qwen3_coder", "--sft"]])
def test_options_of_the_format_are_taken(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps([XLAM]))
    assert 0 == run("convert", tmp_path / "x.json", tmp_path / "out", "--test-share", 0, *options).exit_code


RAW = [
    {"instruction": f"i{n}", "input": f"u{n}", "output": f"<think> a </think>\n<response> {n} </response>"}
    for n in range(150)
]


def test_the_split_is_the_authors() -> None:
    """They call numpy.random.seed(31415) and shuffle in place; 2 % from the end are the test rows."""
    expected = list(RAW)
    numpy.random.seed(31415)
    numpy.random.shuffle(expected)
    assert (expected[:147], expected[147:]) == released_split(RAW)


def test_rlla_writes_the_authors_columns(tmp_path: Path) -> None:
    (tmp_path / "raw.json").write_text(json.dumps(RAW))
    assert 0 == run("rlla", tmp_path / "raw.json", tmp_path / "out").exit_code
    train, test = (pq.read_table(tmp_path / "out" / f"{split}.parquet") for split in ("train", "test"))
    assert (147, 3) == (len(train), len(test))
    assert ["data_source", "prompt", "ability", "reward_model", "extra_info"] == test.column_names
    first = test.to_pylist()[0]
    expected = released_split(RAW)[1][0]
    assert {"index": 0, "split": "test", **expected} == first["extra_info"]
    assert ("math", expected["output"]) == (first["ability"], first["reward_model"]["ground_truth"])


def test_rlla_names_a_bad_row(tmp_path: Path) -> None:
    bad = [*RAW[:3], {"instruction": "i", "input": "u"}, {**RAW[0], "output": "<tool_call>\n{\n</tool_call>"}]
    (tmp_path / "raw.json").write_text(json.dumps(bad))
    text = str(run("rlla", tmp_path / "raw.json", tmp_path / "out").exception)
    assert "2 of 5 rows are bad" in text and "row 3: 'output' must be text" in text and "row 4: output" in text


def test_rlla_without_its_bad_rows_keeps_the_authors_split(tmp_path: Path) -> None:
    good_train, good_test = released_split(RAW)
    positions = [RAW.index(row) for row in (good_train[5], good_test[1])]
    bad = [{**row, "output": None} if index in positions else row for index, row in enumerate(RAW)]
    (tmp_path / "raw.json").write_text(json.dumps(bad))
    done = run("rlla", tmp_path / "raw.json", tmp_path / "out", "--skip-bad")
    assert 0 == done.exit_code, done.output
    found = {
        split: [row["extra_info"]["input"] for row in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()]
        for split in ("train", "test")
    }
    kept = {
        "train": [row["input"] for index, row in enumerate(good_train) if index != 5],
        "test": [row["input"] for index, row in enumerate(good_test) if index != 1],
    }
    assert kept == found
    assert 0 == run("rlla", tmp_path / "raw.json", tmp_path / "sft", "--skip-bad", "--sft").exit_code
    assert 148 == len(pq.read_table(tmp_path / "sft" / "sft.parquet"))


def test_rows_and_columns_are_those_of_the_released_file(shared: Path, tmp_path: Path) -> None:
    table = pq.read_table(shared / "data" / "rlla_test.parquet")
    rows = table.to_pylist()
    raw = [{key: row["extra_info"][key] for key in ("instruction", "input", "output")} for row in rows]
    assert rows == [released_row(each, index=index, split="test") for index, each in enumerate(raw)]
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    assert 0 == run("rlla", tmp_path / "raw.json", tmp_path / "out").exit_code
    assert table.schema.remove_metadata() == pq.read_table(tmp_path / "out" / "train.parquet").schema.remove_metadata()
