"""The authors' rules: executed vectors, a plain dynamic programme, and text that crashed the released code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rewards.steptool_released import (
    aggregate_judgements,
    contributing,
    longest_common_subsequence,
    released_contribution,
    released_success,
    subsequence_length,
    success_count,
    tokenise_sample,
)


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "vectors" / "steptool.json").read_text())


def value_or_exception(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as err:
        return f"EXC:{type(err).__name__}"


def test_succ_calling_repeats_the_released_values_and_crashes(vectors: dict[str, Any]) -> None:
    for case in vectors["D_rule_succ_calling"]:
        content = case["content"]
        assert case["expect"] == value_or_exception(lambda c=content: released_success(c, strict=True)), case["note"]


def test_calls_are_counted_as_released(vectors: dict[str, Any]) -> None:
    for case in vectors["D_success_count"]:
        assert tuple(case["expect"]) == success_count(case["messages"]), case["name"]


def test_contribution_repeats_the_released_values(vectors: dict[str, Any]) -> None:
    for case in vectors["E_rule_contribution"]:
        content, answer, threshold = case["content"], case["finish_content"], case["threshold"]
        found = value_or_exception(
            lambda c=content, a=answer, t=threshold: released_contribution(c, a, threshold=t, strict=True)
        )
        if isinstance(case["expect"], str):
            assert case["expect"] == found, case["name"]
            continue
        expect = case["expect"]
        ratio = None if found.ratio is None else round(found.ratio, 6)
        assert (expect["response_text"], expect["lcs_len"], expect["ratio"], expect["contribution"]) == (
            found.response_text,
            found.lcs_length,
            ratio,
            found.value,
        ), case["name"]
        assert expect["lcs"] == longest_common_subsequence(found.response_text, answer), case["name"]
        assert [bool(expect["contribution"])] == contributing([content], answer, threshold=threshold), case["name"]


def test_judgements_aggregate_to_the_released_rewards(vectors: dict[str, Any]) -> None:
    for case in vectors["J_annotation_to_reward_inferred"]["cases"]:
        given_ = case["input"]
        found = aggregate_judgements(given_["succ"], given_["contribution"], given_["status"])
        assert case["expect"] == pytest.approx(found, abs=1e-6), case["name"]


def test_a_sample_is_tokenised_and_cut_as_released(vectors: dict[str, Any]) -> None:
    for case in vectors["C_formatting_func_char_tokenizer"]:
        given_ = case["input"]
        sample = tokenise_sample(
            given_["p"],
            given_["q"],
            given_["w"],
            lambda text, bos=given_["bos"]: [*([1] if bos else []), *map(ord, text)],
            max_context_length=given_["ctx"],
            max_response_length=given_["resp"],
        )
        expect = case["expect"]
        assert expect["query"] == sample.query, case["name"]
        assert expect["response"] == sample.response, case["name"]
        assert expect["frag_mask"] == sample.fragment_mask, case["name"]
        assert expect["label_float16"] == pytest.approx(sample.rewards, abs=1e-7), case["name"]


def test_a_tokenizer_that_adds_bos_adds_it_before_every_fragment() -> None:
    sample = tokenise_sample(["P", "Q"], ["a", "b"], [0.5, 1.0], lambda text: [0, *map(ord, text)])
    # 0 P | 0 a | 0 Q, then 0 b; the BOS of a response is trained.
    assert [0, 80, 0, 97, 0, 81] == sample.query
    assert [0, 98] == sample.response
    assert [0, 0, 1, 1, 0, 0, 1, 1] == sample.fragment_mask


ODD = ["", "null", "[1]", "5", '"x"', '{"error": ""}', '{"response": 1}', "\ud800", "[" * 5000, '{"error": "cut \\']


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_odd_text_is_a_failure_and_never_raises(content: str) -> None:
    assert released_success(content) is False
    released_contribution(content, "answer")
    contributing([content], "answer")


def plain_length(first: str, second: str) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        new = [0]
        for j, b in enumerate(second):
            new.append(row[j] + 1 if a == b else max(new[j], row[j + 1]))
        row = new
    return row[-1]


def plain_subsequence(first: str, second: str) -> str:
    """The quadratic programme with the released back-tracking: on ties, drop the last character of `second`."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    found, i, j = "", len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found, i, j = first[i - 1] + found, i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


SHORT = st.text("abcdé ", max_size=40)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SHORT, SHORT)
def test_bit_parallel_equals_the_quadratic_programme(first: str, second: str) -> None:
    assert plain_length(first, second) == subsequence_length(first, second)
    assert plain_subsequence(first, second) == longest_common_subsequence(first, second)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SHORT, SHORT, st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0, 1.5]))
def test_stopping_early_changes_no_value(text: str, answer: str, threshold: float) -> None:
    content = json.dumps({"error": "", "response": text})
    exact = released_contribution(content, answer, threshold=threshold).value
    assert [bool(exact)] == contributing([content], answer, threshold=threshold)


@pytest.mark.parametrize(
    ("judgements", "match"),
    [
        (([], [], []), "0 of status"),
        (([[1]], [[5]], ["Solved", "Solved"]), "1 of succ_calling.*2 of status"),
        (([[1], [1, 1]], [[5], [5]], ["Solved", "Solved"]), "judgement 1: 2 scores of succ_calling for 1 steps"),
        (([[2]], [[5]], ["Solved"]), "judgement 0: succ_calling 2 is outside 0..1"),
        (([[1]], [[float("nan")]], ["Solved"]), "contribution nan is outside"),
        (([["1"]], [[5]], ["Solved"]), "succ_calling '1' is outside"),
        (([[1]], [[5]], ["Maybe"]), "status 'Maybe', wanted one of Solved"),
    ],
    ids=["none", "rounds", "lengths", "range", "nan", "type", "status"],
)
def test_wrong_judgements_are_named(judgements: Any, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        aggregate_judgements(*judgements)


def test_a_sample_with_unequal_lists_is_refused() -> None:
    with pytest.raises(DatasetError, match="2 prompts, 1 responses and 2 rewards"):
        tokenise_sample(["a", "b"], ["c"], [1, 1], lambda text: [0])
    with pytest.raises(ConfigError, match="positive"):
        tokenise_sample(["a"], ["c"], [1], lambda text: [0], max_response_length=0)
