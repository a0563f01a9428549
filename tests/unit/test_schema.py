"""The form of a row: what passes, and that each fault is named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from verl_toolrl.errors import DatasetError
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.schema import validate_row


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "data_source": "rlla",
        "prompt": [{"role": "user", "content": "hi"}],
        "reward_model": {"style": "rule", "ground_truth": "<think> t </think>\n<response> r </response>"},
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def test_the_authors_rows_are_valid(shared: Path) -> None:
    rows = pq.read_table(shared / "data" / "rlla_test.parquet").to_pylist()
    for index, item in enumerate(rows):
        validate_row(item, f"row {index}")
        parse_ground_truth(item["reward_model"]["ground_truth"], f"row {index}")
    assert 80 == len(rows)


def test_arrays_of_numpy_count_as_lists() -> None:
    validate_row(row(prompt=np.array([{"role": "user", "content": "hi"}], dtype=object)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "row 3: must be an object, got list"),
        (row(data_source=...), "row 3: column 'data_source' is missing"),
        (row(data_source=""), "data_source must be a text that is not empty"),
        (row(prompt=...), "column 'prompt' is missing"),
        (row(prompt="hi"), "prompt must be a list of messages, got str"),
        (row(prompt=[]), "prompt is empty"),
        (row(prompt=[{"role": "user"}]), r"prompt\[0\] must be an object with role and content"),
        (row(prompt=[{"role": "bot", "content": ""}]), r"prompt\[0\].role is 'bot'"),
        (row(prompt=[{"role": "user", "content": 5}]), r"prompt\[0\].content must be text"),
        (row(reward_model=...), "column 'reward_model' is missing"),
        (row(reward_model={"style": "rule"}), r"reward_model.ground_truth is missing \(keys: style\)"),
        (row(extra_info="x"), "extra_info must be an object, got str"),
    ],
)
def test_a_faulty_row_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        validate_row(value, "row 3")


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (5, "row 7: must be text or a list of calls, got int"),
        ("<tool_call>\n{bad}\n</tool_call>", "row 7: Expecting property name"),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', "row 7: no arguments given"),
        ([{"args": {}}], r"row 7: \[0\] has no 'name' \(keys: args\)"),
    ],
)
def test_an_unreadable_ground_truth_is_named_with_its_place(truth: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        parse_ground_truth(truth, "row 7")
