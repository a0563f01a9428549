"""`verl-toolrl tools ...` as a person or a script uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app, main

runner = CliRunner()


def test_list_shows_every_tool_of_the_set():
    result = runner.invoke(app, ["tools", "list"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for word in ("calculate", "math", "inline", "finish (ends)", "ready-made:"):
        assert word in result.output


def test_list_and_show_speak_json():
    rows = json.loads(runner.invoke(app, ["tools", "list", "--json"]).output)
    assert {"name", "domain", "isolation", "timeout", "deterministic"} <= set(rows[0])
    schema = json.loads(runner.invoke(app, ["tools", "show", "calculate", "--json"]).output)
    assert schema["function"]["parameters"]["required"] == ["expression"]


def test_show_prints_the_schema_and_the_limits():
    output = runner.invoke(app, ["tools", "show", "calculate"]).output
    assert '"name": "calculate"' in output and "timeout 1" in output and "inline" in output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["calculate", '{"expression": "6 * 7"}'], 0, "42"),
        (["calculate", '{"expression": "1 / 0"}'], 2, "Division by zero"),
        (["check_stock", '{"item": "ghost"}'], 3, "no item"),
        (["sell", '{"item": "pen", "quantity": 1}', "--state", '{"Inventory": {"stock": {}}}'], 3, "no item"),
    ],
)
def test_call_answers_and_its_exit_code_tells_whose_doing_it_was(arguments: list[str], code: int, words: str):
    result = runner.invoke(app, ["tools", "call", *arguments])
    assert (result.exit_code, words in result.output) == (code, True)


def test_call_speaks_json():
    result = runner.invoke(app, ["tools", "call", "calculate", '{"expression": "1 + 1"}', "--json"])
    assert json.loads(result.output)["value"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "calcluate"], "did you mean 'calculate'"),
        (["list", "-t", "none.yaml"], "no such file"),
        (["call", "calculate", "{"], "not JSON"),
        (["call", "calculate", "[1]"], "wanted a JSON object"),
        (["serve", "--http", "8000"], "HOST:PORT"),
    ],
)
def test_a_mistake_ends_with_one_readable_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["verl-toolrl", "tools", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and error.startswith("error: ") and "Traceback" not in error


def test_a_users_tool_set_works_from_the_command_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        'from verl_toolrl.toolbox import tool\n\n@tool\ndef greet(name: str) -> str:\n    """Greet."""\n'
        '    return f"Hello {name}"\n'
    )
    (tmp_path / "mine.yaml").write_text("tools: [./mine.py]\n")
    result = runner.invoke(app, ["tools", "call", "greet", '{"name": "Ada"}', "-t", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 0 and "Hello Ada" in result.output
