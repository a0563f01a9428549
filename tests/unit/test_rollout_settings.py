"""What a recipe and a row may say about a rollout, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.formats.tool_list import tools_from_prompt
from verl_toolrl.rollout import make_dialogue
from verl_toolrl.rollout.dialogue import ToolRLDialogue
from verl_toolrl.rollout.settings import RolloutSettings, row_session
from verl_toolrl.toolbox import Budget, Toolbox
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

BAD = [
    ({"toolbx": "quickstart"}, "did you mean 'toolbox'"),
    ({"steps": 0}, "steps"),
    ({"turn_tokens": "many"}, "turn_tokens"),
    ({"budget": {"cals": 3}}, "did you mean 'calls'"),
    ({"audit_every": True}, "audit_every"),
    ({"dialect": "llama_json"}, "did you mean 'llama3_json'"),
    ({"stop_token_ids": ["</tool_call>"]}, "stop_token_ids"),
]


@pytest.mark.parametrize(("block", "text"), BAD)
def test_a_wrong_setting_is_refused_by_name(block: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RolloutSettings.from_mapping(block)


def test_nothing_said_is_the_default() -> None:
    assert RolloutSettings() == RolloutSettings.from_mapping(None) == RolloutSettings.from_mapping({})


def test_a_row_chooses_tools_state_and_budget() -> None:
    said = {"tools": ["sell"], "state": {"Inventory": {"stock": {}}}, "budget": {"calls": 2}}
    for given in (json.dumps(said), said, {**said, "state": {"Inventory": {"stock": {}}, "Agenda": None}}):
        row = row_session({"session": given}, Budget(seconds=9.0))
        assert (("sell",), {"Inventory": {"stock": {}}}) == (row.tools, row.state)
        assert Budget(calls=2, seconds=9.0) == row.budget


@pytest.mark.parametrize("extra_info", [None, {}, {"session": None, "tool_selection": None}, {"session": "{}"}])
def test_a_row_that_says_nothing_gets_all_tools(extra_info: Any) -> None:
    row = row_session(extra_info, Budget(calls=1))
    assert (None, None, Budget(calls=1)) == (row.tools, row.state, row.budget)


@pytest.mark.parametrize("session", [{"tools": []}, '{"tools": []}'])
def test_an_empty_list_of_tools_is_no_tool(session: Any) -> None:
    row = row_session({"session": session, "tool_selection": ["a"]})
    assert () == row.tools and [] == Toolbox.load("quickstart").schemas(row.tools)


@pytest.mark.parametrize(("given", "tools"), [(["a", "b"], ("a", "b")), ([], None), (np.array([]), None)])
def test_verls_selection_of_tools_is_read_as_verl_does(given: Any, tools: Any) -> None:
    assert tools == row_session({"tool_selection": given}).tools


BAD_ROWS = [
    ("{", "no JSON"),
    ("[1]", "object"),
    ({"tols": []}, "did you mean 'tools'"),
    ({"tools": [1]}, "list of names"),
    ({"tools": "sell"}, "list of names, found 'sell'"),
    ({"state": {"Inventory": 3}}, "keywords"),
    ({"budget": {"calls": -1}}, "calls"),
]


@pytest.mark.parametrize(("session", "text"), BAD_ROWS)
def test_a_row_that_cannot_be_read_is_refused(session: Any, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        row_session({"session": session})


def test_an_unknown_form_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'native'"):
        make_dialogue("nativ")


def test_toolrls_list_of_tools_reads_back() -> None:
    schemas = Toolbox.load("quickstart").schemas()
    found = tools_from_prompt(ToolRLDialogue().tool_list(schemas))
    assert [schema["function"]["name"] for schema in schemas] == [tool["name"] for tool in found]
    for schema, tool in zip(schemas, found):
        wanted = schema["function"]["parameters"].get("properties", {})
        assert list(wanted) == list(tool["parameters"]["properties"])


OBSERVED = [
    pytest.param("5", '[{"name": "f", "results": 5}]', id="a number"),
    pytest.param('{"a": [1]}', '[{"name": "f", "results": {"a": [1]}}]', id="an object"),
    pytest.param("12 apples", '[{"name": "f", "results": "12 apples"}]', id="a text that begins like a number"),
    pytest.param("", '[{"name": "f", "results": ""}]', id="nothing"),
    pytest.param("tru", '[{"name": "f", "results": "tru"}]', id="a text that begins like a word of JSON"),
    pytest.param('é "x"', '[{"name": "f", "results": "é \\"x\\""}]', id="quotes and accents"),
]


@pytest.mark.parametrize(("content", "wanted"), OBSERVED)
def test_an_observation_is_json(content: str, wanted: str) -> None:
    (message,) = ToolRLDialogue().observe([ToolCall("f")], [ToolResult(Outcome.OK, content)], [])
    assert f"<obs> {wanted} </obs>" == message["content"]
    json.loads(message["content"].removeprefix("<obs> ").removesuffix(" </obs>"))
