"""Tool sets: YAML, module paths and files; a mistake says where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from verl_toolrl.errors import AuthorError
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import ToolCall

_TOOLS = '''
from verl_toolrl.toolbox import StatefulTool, ToolError, tool

@tool(isolation="inline", limits={"output_tokens": 7})
def echo(text: str) -> str:
    """Echo."""
    return text

class Shelf(StatefulTool):
    def __init__(self, books: int = 0) -> None:
        self.books = books

    @tool(isolation="inline")
    def count(self) -> int:
        """Count."""
        return self.books

def several(number: int):
    return [echo.replaced(name=f"echo_{i}") for i in range(number)]
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_tools.py").write_text(_TOOLS)
    return tmp_path


def load(folder: Path, text: str) -> Toolbox:
    path = folder / "set.yaml"
    path.write_text(text)
    return Toolbox.load(path)


def test_a_set_names_tools_in_every_way_and_changes_them(folder: Path):
    box = load(
        folder,
        """
        tools:
          - calculator
          - ./my_tools.py:echo
          - verl_toolrl.tools.dates:day_of_week
          - {use: ./my_tools.py:several, config: {number: 2}, prefix: my_}
          - {use: ./my_tools.py:Shelf, config: {books: 3}, rename: {count: count_left}, name: left}
          - {use: ./my_tools.py:Shelf, rename: {count: count_right}, name: right, isolation: thread}
          - {use: contacts, only: [find_contacts], limits: {timeout: 9}}
        limits: {timeout: 4, output_tokens: 100}
        budget: {calls: 5, seconds: 60}
        """,
    )
    assert list(box.tools) == [
        "calculate",
        "echo",
        "day_of_week",
        "my_echo_0",
        "my_echo_1",
        "count_left",
        "count_right",
        "find_contacts",
    ]
    assert (box.budget.calls, box.budget.seconds) == (5, 60)
    # The set's limits hold where neither the tool nor the entry says otherwise.
    assert (box.tools["echo"].limits.timeout, box.tools["echo"].limits.output_tokens) == (4, 7)
    assert box.tools["find_contacts"].limits.timeout == 9
    assert box.tools["count_right"].isolation == "thread"

    async def run() -> list[int]:
        async with box, box.session(state={"right": {"books": 8}}) as session:
            return [each.value for each in await session.call_all([ToolCall("count_left"), ToolCall("count_right")])]

    assert asyncio.run(run()) == [3, 8]


def test_a_module_path_and_a_file_are_tool_sets_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert list(Toolbox.load("my_tools").tools) == ["echo", "count"]
    assert list(Toolbox.load("my_tools:Shelf").tools) == ["count"]
    by_file = Toolbox.load("./my_tools.py").tools
    assert list(by_file) == ["echo", "count"] and by_file["echo"].source == str(folder / "my_tools.py")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("tools: [calculater]", ["tools[1]", "calculater", "did you mean 'calculator'"], id="unknown name"),
        pytest.param("tools: ['./none.py']", ["none.py: no such file"], id="missing file"),
        pytest.param("tools: ['./my_tools.py:ehco']", ["did you mean 'echo'"], id="unknown object"),
        pytest.param("tools: [calculator, calculator]", ["two tools are named 'calculate'"], id="one name twice"),
        pytest.param("tools: []", ["at least one entry"], id="empty"),
        pytest.param("tools: calculator", ["must be a list"], id="no list"),
        pytest.param("- calculator", ["wanted a mapping"], id="no mapping"),
        pytest.param("tools: [", ["not readable as YAML"], id="broken YAML"),
        pytest.param("tool: [calculator]", ["unknown key 'tool'", "did you mean 'tools'"], id="misspelt key"),
        pytest.param("tools: [{uses: x}]", ["did you mean 'use'"], id="misspelt entry key"),
        pytest.param("tools: [{use: x, mcp: {}}]", ["exactly one of"], id="two kinds"),
        pytest.param("tools: [{use: units, only: [convert]}]", ["convert_unit"], id="only an unknown tool"),
        pytest.param("tools: [{use: units, limits: {timeout: -1}}]", ["tools[1]", "timeout"], id="bad limit"),
        pytest.param("tools: [{use: units, isolation: proces}]", ["did you mean 'process'"], id="bad isolation"),
        pytest.param("tools: [{use: units, config: {a: 1}}]", ["neither config nor name"], id="config of a function"),
        pytest.param("tools: [{use: './my_tools.py:Shelf', config: {boks: 1}}]", ["did you mean 'books'"], id="config"),
        pytest.param("tools: [units]\nbudget: {call: 1}", ["budget", "did you mean 'calls'"], id="bad budget"),
        pytest.param("tools: [units]\nlimits: {timeout: x}", ["limits", "timeout"], id="bad default limit"),
        pytest.param("tools: [units]\nrecording: {path: a}", ["recording"], id="bad recording"),
        pytest.param("tools: [{mcp: {}}]", ["command", "url"], id="mcp without server"),
        pytest.param("tools: [{mcp: {command: x, session: 1}}]", ["did you mean 'sessions'"], id="mcp misspelt"),
        pytest.param("tools: [{http: {name: a, url: ftp://x, description: d}}]", ["http://"], id="bad url"),
    ],
)
def test_a_mistake_in_a_set_raises_and_says_where(folder: Path, text: str, words: list[str]):
    with pytest.raises(AuthorError) as caught:
        load(folder, text)
    for word in ["set.yaml", *words]:
        assert word in str(caught.value)


def test_a_tool_module_that_breaks_says_so(folder: Path):
    (folder / "bad.py").write_text("import nothing_like_this")
    with pytest.raises(AuthorError, match="running it failed: ModuleNotFoundError"):
        load(folder, "tools: [./bad.py]")
    (folder / "bad2.py").write_text(
        "from verl_toolrl.toolbox import tool\n@tool\ndef f(x) -> str:\n    'T.'\n    return x\n"
    )
    with pytest.raises(AuthorError, match=r"bad2.py:2\).*'x' has no type"):
        load(folder, "tools: [./bad2.py]")


def test_a_set_that_does_not_exist_lists_what_does():
    with pytest.raises(AuthorError, match="did you mean 'quickstart'"):
        Toolbox.load("quickstrat")
    with pytest.raises(AuthorError, match="no such file"):
        Toolbox.load("none.yaml")


def test_a_tool_of_a_file_can_run_in_a_process(folder: Path):
    box = load(folder, "tools: [{use: './my_tools.py:echo', isolation: process, limits: {memory_mb: 512}}]")

    async def run() -> str:
        async with box, box.session() as session:
            return (await session.call(ToolCall("echo", {"text": "hello"}))).content

    assert asyncio.run(run()) == "hello"
