"""Data checks: each fault is found in a row that has it, and the authors' files give the known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from verl_toolrl.data.check import CheckReport, check_rows
from verl_toolrl.data.rows import read_rows
from verl_toolrl.errors import DatasetError
from verl_toolrl.formats import write_response
from verl_toolrl.trajectory import ToolCall

TOOLS = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}]


def row(
    *calls: ToolCall, prompt: str = "p", truth: Any = None, tools: Any = TOOLS, split: str | None = None
) -> dict[str, Any]:
    return {
        "data_source": "rlla",
        "prompt": [{"role": "user", "content": prompt}],
        "reward_model": {
            "ground_truth": truth or write_response(calls, thought="t", response=None if calls else "r"),
            "style": "rule",
        },
        "extra_info": {"tools": json.dumps(tools), "split": split},
    }


def failing(report: CheckReport) -> dict[str, list[int]]:
    return {finding.check: [index for index, _ in finding.rows] for finding in report.findings if finding.rows}


F = ToolCall("f", {"x": 1})
SCHEMA = "a call breaks its tool's schema"


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        ({"data_source": "rlla"}, "form of the row"),
        ({**row(F, prompt="q"), "tools": "{}"}, "form of the row"),
        (row(truth="<tool_call>\n{bad}\n</tool_call>", prompt="q"), "ground truth cannot be read"),
        (row(ToolCall("f", {"x": "1"}), prompt="q"), SCHEMA),
        (row(ToolCall("f", {}), prompt="q"), SCHEMA),
        (row(ToolCall("f", {"x": 1, "y": 2}), prompt="q"), SCHEMA),
        (row(ToolCall("g", {}), prompt="q"), SCHEMA),
        (row(F, tools="no list", prompt="q"), SCHEMA),
        ({**row(ToolCall("f", {"x": "1"}), prompt="q", tools=None), "tools": json.dumps(TOOLS)}, SCHEMA),
        (row(F), "duplicate of another row"),
        (row(ToolCall("f", {"x": 2})), "same prompt, another ground truth"),
        (row(F, split="test"), "prompt stands in two splits of the file"),
    ],
)
def test_each_fault_is_found_in_its_row(bad: Any, check: str) -> None:
    report = check_rows([row(F, split="train"), bad], "file")
    assert [1] == sorted(set(failing(report)[check]))


def test_sound_rows_pass() -> None:
    report = check_rows(
        [row(F), row(prompt="q"), row(prompt="r", truth=[{"name": "f", "arguments": {"x": 1}}])], "file"
    )
    assert ({}, 0, 0) == (failing(report), report.errors, report.warnings)


def test_a_prompt_of_another_split_is_found() -> None:
    report = check_rows([row(F), row(F, prompt="q")], "test", others={"train": [row(F, prompt="q")]})
    assert {"prompt also stands in train": [1]} == failing(report)


def test_prompts_are_measured() -> None:
    rows = [row(F, prompt="a" * length) for length in (1, 5, 9)]
    report = check_rows(rows, "file", count_tokens=lambda prompt: len(prompt[0]["content"]), max_prompt_length=8)
    assert {"prompt longer than 8 tokens": [2]} == failing(report)
    assert {"min": 1, "mean": 5, "p95": 9, "max": 9} == report.prompt_tokens


def test_the_authors_files_give_the_known_numbers(shared: Path) -> None:
    """17 of 400 supervised rows fail under `released`, none under `robust`; one prompt of the test split leaks."""
    test = read_rows(shared / "data" / "rlla_test.parquet")
    supervised = read_rows(shared / "data" / "rlla_sft.json")
    report = check_rows(supervised, "sft", others={"test": test})
    counts = {check: len(rows) for check, rows in failing(report).items() if check != SCHEMA}
    assert {"ground truth does not earn the maximum (released)": 17, "prompt also stands in test": 1} == counts
    assert [0, 0] == [check_rows(test, "test").errors, report.errors]


def test_rows_are_read_from_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": "\u2028"}, ensure_ascii=False) + "\n\n" + '{"x": 2}\n')
    (tmp_path / "b.json").write_text('[{"instruction": "i", "input": "u", "output": "o"}]')
    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), tmp_path / "c.parquet")
    assert [2, 1, 2] == [len(read_rows(tmp_path / name)) for name in ("a.jsonl", "b.json", "c.parquet")]
    assert "o" == read_rows(tmp_path / "b.json")[0]["reward_model"]["ground_truth"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, "no such file"),
        ("a.csv", "x", "wanted a .parquet, .jsonl or .json file"),
        ("a.jsonl", "{}\n{bad", "line 2: not JSON"),
        ("a.json", "{}", "wanted a list of rows, got dict"),
        ("a.parquet", "x", "not readable as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_rows(tmp_path / name)


def test_the_schemas_of_a_native_row_count_as_part_of_its_prompt() -> None:
    native = {**row(F, prompt="q"), "tools": json.dumps(TOOLS)}
    report = check_rows([row(F), native], "file", count_tokens=lambda prompt, tools=(): 10 + 100 * len(tools))
    assert (10, 110) == (report.prompt_tokens["min"], report.prompt_tokens["max"])
