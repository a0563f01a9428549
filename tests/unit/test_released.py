"""The released scorer: the executed vectors, and what the vectors cannot show."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rewards import make_reward
from verl_toolrl.rewards.released import _well_formed

SWITCHES = {
    "CORRECTMAX1": "equal_max",
    "MAX1STEP30MAX3": "two_stage",
    "SCHEDULEREWARD": "dynamic_scale",
    "WITHLENGTH": "length",
    "SCHEDULELENGTH": "dynamic_length",
    "REFINEDREWARD": "finegrained",
    "INTERMEDIATEREWARD": "intermediate",
    "COARSEREWARD": "coarse",
}
TRUTH = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'


WITHOUT_EFFECT: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"dynamic_length": True}, {"dynamic_length": "length: true"}),
    ({"dynamic_length": True, "length": True}, {}),
    ({"coarse": True}, {}),
    ({"finegrained": True, "intermediate": True}, {}),
    (
        {"coarse": True, "finegrained": True, "intermediate": True},
        {"finegrained": "coarse: false", "intermediate": "coarse: false"},
    ),
]


@pytest.mark.parametrize(("options", "expected"), WITHOUT_EFFECT, ids=lambda value: str(value)[:50])
def test_switches_that_change_nothing_say_what_they_need(options: dict[str, Any], expected: dict[str, str]) -> None:
    reward: Any = make_reward("toolrl", mode="released", **options)
    assert expected == reward.without_effect
    plain = make_reward("toolrl", mode="released", **{key: True for key in options if key not in expected})
    wrong = TRUTH.replace('"x": 1', '"y": 1, "x": 1')
    for response in (TRUTH, wrong, ""):
        given_: dict[str, Any] = {"response": response, "ground_truth": TRUTH, "step": 9}
        assert plain(**given_) == reward(**given_)


def test_every_executed_vector_of_the_authors_scorer_is_met(shared: Path) -> None:
    """Switches count only for "1"; STRICTMATCH is read nowhere."""
    vectors = json.loads((shared / "vectors" / "toolrl.json").read_text())
    failures, count = [], 0
    for case in vectors["cases"]:
        options = {SWITCHES[key]: True for key, value in case["env"].items() if value == "1" and key in SWITCHES}
        # The harness named its experiment "qwen-vectors".
        reward = make_reward("toolrl", mode="released", chat_family=case.get("family", "qwen"), **options)
        count += 1
        if case.get("raises"):
            with pytest.raises(DatasetError):
                reward(response=case["response"], ground_truth=case["ground_truth"], step=case["step"])
            continue
        result = reward(response=case["response"], ground_truth=case["ground_truth"], step=case["step"])
        expected = [case[key] for key in ("total", "format", "correctness", "length")]
        got = [result.score, *(result.components[key] for key in ("format", "correctness", "length"))]
        if any(abs(a - b) > vectors["tolerance"] for a, b in zip(expected, got, strict=True)):
            failures.append((case["id"], expected, got))
    assert (failures, count) == ([], len(vectors["cases"]))


PATTERNS = {
    (False, True): r"^<think>.*?</think>\n<response>.*?</response>$",
    (True, False): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
    (True, True): r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n<response>.*?</response>$",
    (False, False): r"^<think>.*?</think>$",
}
PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "\n", "a", " "]


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.booleans(), st.booleans())
def test_the_layout_is_accepted_exactly_where_the_released_patterns_match(
    pieces: list[str], calls: bool, response: bool
) -> None:
    text = "".join(pieces).strip()
    truth = "<tool_call>" * calls + "<response>" * response
    tags = ["<tool_call>", "</tool_call>"] * calls + ["<response>", "</response>"] * response
    expected = bool(re.search(PATTERNS[calls, response], text, re.DOTALL)) and all(text.count(t) == 1 for t in tags)
    assert expected == _well_formed(text, truth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equal_mx": True}, "did you mean 'equal_max'"),
        ({"equal_max": "true"}, "equal_max must be true or false, got 'true'"),
        ({"chat_family": "qwn"}, "did you mean 'qwen'"),
        ({"mode": "relased"}, "did you mean 'released'"),
    ],
)
def test_a_wrong_option_raises_and_names_the_nearest(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("toolrl", **{"mode": "released", **options})


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown reward 'tolrl', did you mean 'toolrl'"):
        make_reward("tolrl")


def test_a_response_that_is_not_text_is_the_callers_error() -> None:
    with pytest.raises(ConfigError, match="response must be text, got int"):
        make_reward("toolrl", mode="released")(response=5, ground_truth=TRUTH)


def test_a_ground_truth_that_the_original_fails_on_says_which_line() -> None:
    with pytest.raises(DatasetError, match="line 2 of the first <tool_call> block is not JSON"):
        make_reward("toolrl", mode="released")(
            response="", ground_truth='<tool_call>\n{"name": "f", "parameters": {}}\n{bad}\n</tool_call>'
        )


def test_a_configured_reward_survives_pickle() -> None:
    reward = make_reward("toolrl", mode="released", equal_max=True, length=True)
    assert reward == pickle.loads(pickle.dumps(reward))


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = make_reward("toolrl", mode="released")
    expected = reward(response=TRUTH, ground_truth=TRUTH)
    for name in SWITCHES:
        monkeypatch.setenv(name, "1")
    assert expected == reward(response=TRUTH, ground_truth=TRUTH)


@pytest.mark.parametrize(
    "hostile",
    ["[" * 100_000, '{"a":' * 100_000, "<tool_call>" * 50_000, "<think>" + "</think>\n" * 50_000, "\\" * 100_000],
    ids=["brackets", "objects", "opens", "closes", "backslashes"],
)
def test_hostile_text_gets_the_minimum(hostile: str) -> None:
    response = f"<think> t </think>\n<tool_call>\n{hostile}\n</tool_call>"
    result = make_reward("toolrl", mode="released")(response=response, ground_truth=TRUTH)
    assert -3.0 == result.components["correctness"]
