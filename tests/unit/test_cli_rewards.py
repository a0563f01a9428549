"""The commands `score`, `data check` and `reward lint`, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.cli.options import parse_settings
from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import write_response
from verl_toolrl.trajectory import ToolCall

TRUTH = write_response([ToolCall("f", {"x": 1})], thought="t")


def run(*arguments: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_score_writes_a_line_for_each_line_and_an_error_where_the_ground_truth_is_unusable() -> None:
    rows = [
        {"id": "a", "response": TRUTH, "ground_truth": TRUTH, "step": 3},
        {"id": 2, "response": TRUTH, "ground_truth": "<tool_call>\n{bad"},
        {"id": 3, "response": 5, "ground_truth": TRUTH},
        {"id": 4, "response": TRUTH},
        {"id": 5, "response": TRUTH, "ground_truth": TRUTH, "step": "x"},
    ]
    stdin = "\n".join(map(json.dumps, rows)) + "\n\nno json\n"
    result = run("score", "--reward", "toolrl", "--set", "mode=released", "--set", "equal_max=true", "-", stdin=stdin)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"id": "a", "score": 2.0, "components": {"format": 1.0, "correctness": 1.0, "length": 0.0}} == answers[0]
    assert [2, 3, 4, 5, None] == [answer["id"] for answer in answers[1:]]
    wanted = ["is not JSON", "must be text, got int", "'ground_truth' is missing", "step must be", "line 7: not JSON"]
    assert all(part in answer["error"] for part, answer in zip(wanted, answers[1:], strict=True))
    assert 0 == result.exit_code
    assert 1 == run("score", "--strict", "-", stdin="no json\n").exit_code


def test_score_meets_the_executed_vectors_from_a_file(shared: Path, tmp_path: Path) -> None:
    cases = json.loads((shared / "vectors" / "toolrl.json").read_text())["cases"]
    cases = [case for case in cases if not case["env"]]
    file = tmp_path / "rows.jsonl"
    keys = ("id", "response", "ground_truth", "step")
    file.write_text("".join(json.dumps({key: case[key] for key in keys}) + "\n" for case in cases))
    result = run("score", "--set", "mode=released", "--set", "chat_family=qwen", str(file))
    answers = {answer["id"]: answer for answer in map(json.loads, result.stdout.splitlines())}
    for case in cases:
        if case.get("raises"):
            assert "error" in answers[case["id"]]
        else:
            assert abs(case["total"] - answers[case["id"]]["score"]) < 1e-9


def test_a_wrong_option_ends_the_command_with_the_nearest_name() -> None:
    result = run("score", "--set", "mode=relesed", "-")
    assert isinstance(result.exception, ConfigError) and "did you mean 'released'" in str(result.exception)


def test_settings_are_yaml_and_dots_go_into_mappings() -> None:
    settings = ["mode=robust", "cost=2", "weights.format=linear(1 -> 0)", "rewards={a: {weight: 1}}", "in_thought=yes"]
    assert {
        "mode": "robust",
        "cost": 2,
        "weights": {"format": "linear(1 -> 0)"},
        "rewards": {"a": {"weight": 1}},
        "in_thought": True,
    } == parse_settings(settings)
    for wrong in (["mode"], ["a=1", "a.b=2"], ["a={"]):
        with pytest.raises(ConfigError):
            parse_settings(wrong)


def test_lint_exits_with_one_where_it_finds_something(tmp_path: Path) -> None:
    clean = run("reward", "lint", "--limit", "2", "--max-seconds", "30")
    assert (0, True) == (clean.exit_code, "0 faults" in clean.stdout)
    found = run("reward", "lint", "--set", "mode=released", "--limit", "2", "--max-seconds", "30", "--json")
    report = json.loads(found.stdout)
    assert 1 == found.exit_code and {"pays", "costs"} == {finding["kind"] for finding in report["findings"]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"ground_truth": TRUTH}))
    assert 0 == run("reward", "lint", "--max-seconds", "30", str(rows)).exit_code


def test_data_check_exits_with_one_on_errors_and_prints_the_row(tmp_path: Path) -> None:
    good = {
        "data_source": "d",
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"ground_truth": TRUTH},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good))
    assert 0 == run("data", "check", str(file)).exit_code
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "prompt": "q"}))
    result = run("data", "check", "--json", str(file))
    assert 1 == result.exit_code
    assert [[1, "prompt must be a list of messages, got str"]] == json.loads(result.stdout)[0]["findings"][0]["rows"]
