"""Every row is read before a model is loaded; what is wrong is named with file, row and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("omegaconf", reason="needs omegaconf, which verl brings")

from omegaconf import OmegaConf

from verl_toolrl.data.rlla import rl_row, sft_row
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.integrations.rows import as_list, check_files, report_dropped
from verl_toolrl.rewards import make_reward

TRUTH = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
REWARD = make_reward("toolrl", mode="released")


def row(index: int = 0, **changes: Any) -> dict[str, Any]:
    raw = {"instruction": "Tools ...", "input": "<user> hi </user>", "output": TRUTH}
    return {**rl_row(raw, index=index), **changes}


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_good_rows_of_parquet_and_json_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row(index)) for index in range(3)))
    (tmp_path / "b.json").write_text(json.dumps([row(0)]))
    files = [parquet(tmp_path / "c.parquet", [row(0), row(1)]), str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]
    assert 6 == check_files(files, REWARD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, r"bad.jsonl: row 1: .*prompt"),
        ({"reward_model": {"style": "rule"}}, r"bad.jsonl: row 1: .*ground_truth"),
        (
            {"reward_model": {"style": "rule", "ground_truth": "<think> a </think>\n<tool_call>\n{oops\n</tool_call>"}},
            r"bad.jsonl: row 1: .*not JSON",
        ),
        ({"data_source": 3}, r"bad.jsonl: row 1: .*data_source"),
        ({"tools": "[{}]"}, r"bad.jsonl: row 1: column 'tools': \[0\] has no 'name'"),
    ],
    ids=["no prompt", "no ground truth", "malformed ground truth", "data source is no text", "tools without a name"],
)
def test_a_bad_row_is_named_with_file_and_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, [row(0), row(1, **changes)])))
    with pytest.raises(DatasetError, match=message):
        check_files([str(tmp_path / "bad.jsonl")], REWARD)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row().items() if key != "prompt"}]
    with pytest.raises(DatasetError, match="'prompt' is missing"):
        check_files([parquet(tmp_path / "x.parquet", rows)], REWARD)


def test_a_missing_an_empty_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        check_files([str(tmp_path / "none.parquet")], REWARD)
    with pytest.raises(DatasetError, match="no rows"):
        check_files([parquet(tmp_path / "empty.parquet", [row()][:0])], REWARD)
    (tmp_path / "broken.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="cannot be read"):
        check_files([str(tmp_path / "broken.parquet")], REWARD)


OWN = """
def score(response, ground_truth):
    return {"fine": 1.0, "acc": 0.5}

def trajectory(trajectory):
    return {"acc": 1.0, "calls/count": 0.5}

def tools(response, tools):
    return float([tool["name"] for tool in tools] == ["f"])

def exact(response, ground_truth):
    return float(response == ground_truth)

def unsteady(response, ground_truth):
    return {"a": 1.0} if "get" in ground_truth else 1.0
"""


@pytest.mark.parametrize(("name", "component"), [("score", "acc"), ("trajectory", "calls/count")])
def test_a_component_with_a_name_of_ours_stops_the_run_at_the_start(tmp_path: Path, name: str, component: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ConfigError, match=rf"own.py:{name}: the component '{component}' has a name"):
        check_files([parquet(tmp_path / "x.parquet", [row()])], make_reward(f"{tmp_path / 'own.py'}:{name}"))


def test_components_that_change_from_row_to_row_stop_the_run_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    rows = [row(), row(1, reward_model={"style": "rule", "ground_truth": "get"})]
    with pytest.raises(ConfigError, match="own.py:unsteady: the answer lacks 'function' and adds 'a'"):
        check_files([parquet(tmp_path / "x.parquet", rows)], make_reward(f"{tmp_path / 'own.py'}:unsteady"))


def test_the_reward_is_given_the_tools_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    made = parquet(tmp_path / "x.parquet", [row(tools='[{"name": "f"}]')])
    assert 1 == check_files([made], make_reward(f"{tmp_path / 'own.py'}:tools"))


def test_a_ground_truth_of_the_users_own_form_is_said_once_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    rows = [row(index, reward_model={"style": "rule", "ground_truth": '{"answer": 42}'}) for index in range(3)]
    assert 3 == check_files([parquet(tmp_path / "x.parquet", rows)], make_reward(f"{tmp_path / 'own.py'}:exact"))
    said = capsys.readouterr().out
    assert 1 == said.count("x.parquet: row 0: the ground truth is no calls") == said.count("\n")


def test_remote_files_are_left_to_verl() -> None:
    assert 0 == check_files(["hdfs://cluster/train.parquet"], REWARD)


def test_prompts_over_the_limit_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"data": {"max_prompt_length": 64}})
    assert 2 == report_dropped(range(8), 10, config, where="data.train_files")
    assert "2 of 10 prompts are longer than 64 tokens" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="all 10 prompts are longer"):
        report_dropped(range(0), 10, config, where="data.train_files")


@pytest.mark.parametrize("files", ["a.parquet", ["a.parquet"], OmegaConf.create(["a.parquet"])])
def test_files_may_be_one_or_a_list(files: Any) -> None:
    assert ["a.parquet"] == as_list(files)


def test_a_supervised_row_without_output_is_named() -> None:
    with pytest.raises(DatasetError, match="row 7: 'output' must be text"):
        sft_row({"instruction": "a", "input": "b"}, index=7)
