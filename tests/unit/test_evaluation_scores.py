"""Scores of responses, rows as questions, and the result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.evaluation.questions import Question, read_questions
from verl_toolrl.evaluation.result import Answer, load_measurement, measure, write_json
from verl_toolrl.evaluation.scores import mean_scores, score_response

PARIS = '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}'
OSLO = '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 1}}'
ONE = f"<think> t </think>\n<tool_call>\n{PARIS}\n</tool_call>"
TWO = f"<think> t </think>\n<tool_call>\n{PARIS}\n{OSLO}\n</tool_call>"
NONE = "<think> t </think>\n<response> Hello. </response>"


def row(truth: Any, *, source: str = "held_out", user: str = "How is the weather?", **columns: Any) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": user}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 0},
        **columns,
    }


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def question(truth: str, tmp_path: Path) -> Question:
    return read_questions([write(tmp_path / "one.parquet", row(truth))])[0]


# Numbers of the released scorer: correctness = 6 * score / maximum - 3 (shared/specs/toolrl.md 1.4).
@pytest.mark.parametrize(
    ("truth", "response", "expected"),
    [
        pytest.param(ONE, ONE, (1.0, 3.0, 1.0), id="verbatim"),
        pytest.param(ONE, ONE.replace("\n", "\n\n", 1), (0.0, 3.0, 1.0), id="right call in a wrong layout"),
        # Name 1 of 1, keys 1 of 1, one of two values: 3 of 4 points.
        pytest.param(ONE, ONE.replace("Paris", "Lima"), (1.0, 1.5, 0.0), id="one wrong value"),
        pytest.param(ONE, NONE, (0.0, -3.0, 0.0), id="no call where one is wanted"),
        pytest.param(ONE, "", (0.0, -3.0, 0.0), id="silence"),
        # The multiset of names overlaps in 1 of 2: 0.5 + 1 + 2 of 4 points.
        pytest.param(ONE, ONE.replace(PARIS, f"{PARIS}\n{OSLO}"), (1.0, 2.25, 0.0), id="a call too many"),
        pytest.param(ONE, f"{ONE}\n<tool_call>\n{OSLO}\n</tool_call>", (0.0, 3.0, 0.0), id="junk in a second block"),
        pytest.param(TWO, TWO, (1.0, 3.0, 1.0), id="both of two"),
        pytest.param(TWO, TWO.replace(f"{PARIS}\n{OSLO}", f"{OSLO}\n{PARIS}"), (1.0, 3.0, 1.0), id="in another order"),
        # Names 1 of 2, then 3 points of one call of 3 each: 3.5 of 7.
        pytest.param(TWO, ONE, (1.0, 0.0, 0.0), id="one of two"),
        pytest.param(NONE, NONE, (1.0, None, 1.0), id="rightly no call"),
        pytest.param(NONE, "<think> t </think>\n<response> Bye. </response>", (1.0, None, 1.0), id="another answer"),
        pytest.param(NONE, ONE, (0.0, None, 0.0), id="a call where none is wanted"),
        pytest.param(NONE, "<tool_call>\n{broken\n</tool_call>", (0.0, None, 0.0), id="a broken call is an attempt"),
        pytest.param(NONE, "", (0.0, None, 1.0), id="silence makes no call"),
    ],
)
def test_a_response_earns(
    truth: str, response: str, expected: tuple[float, float | None, float], tmp_path: Path
) -> None:
    score = score_response(response, question(truth, tmp_path))
    assert expected == (score.format, score.correctness, score.acc)


HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("truth", "response", "expected"),
    [
        pytest.param(ONE, HERMES, (1.0, 3.0, 1.0), id="right"),
        pytest.param(ONE, HERMES.replace("Paris", "Lima"), (1.0, 1.5, 0.0), id="one wrong value"),
        pytest.param(ONE, "It rains.", (0.0, -3.0, 0.0), id="no call"),
        pytest.param(NONE, "Hello.", (1.0, None, 1.0), id="rightly no call"),
        pytest.param(NONE, HERMES, (0.0, None, 0.0), id="a call where none is wanted"),
    ],
)
def test_a_response_in_hermes_is_scored_by_the_same_rules(
    truth: str, response: str, expected: tuple[float, float | None, float], tmp_path: Path
) -> None:
    score = score_response(response, question(truth, tmp_path), "hermes")
    assert expected == (score.format, score.correctness, score.acc)


def test_correctness_is_the_mean_over_rows_with_calls_and_the_rest_over_all(tmp_path: Path) -> None:
    pairs = [(ONE, ONE), (ONE, NONE), (NONE, NONE), (NONE, ONE)]
    found = mean_scores([score_response(response, question(truth, tmp_path)) for truth, response in pairs])
    assert (4, 2) == (found.rows, found.rows_with_calls)
    assert (0.5, 0.0, 0.5) == (found.format, found.correctness, found.acc)


def test_a_set_without_calls_has_no_correctness(tmp_path: Path) -> None:
    assert mean_scores([score_response(NONE, question(NONE, tmp_path))]).correctness is None


def test_a_ground_truth_as_an_openai_message_means_the_same_calls(tmp_path: Path) -> None:
    """The form of rows for native templates."""
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}
    truth = json.dumps({"role": "assistant", "content": None, "tool_calls": [call]})
    found = question(truth, tmp_path)
    assert 1 == found.wanted_calls
    assert (1.0, 3.0, 1.0) == (lambda s: (s.format, s.correctness, s.acc))(score_response(ONE, found))


def test_rows_keep_their_key_across_files_and_equal_rows_differ(tmp_path: Path) -> None:
    first = read_questions([write(tmp_path / "a.parquet", row(ONE), row(ONE), row(ONE, user="And in Oslo?"))])
    second = read_questions([write(tmp_path / "b.parquet", row(ONE, user="And in Oslo?"), row(ONE))])
    assert len({each.key for each in first}) == 3
    assert {first[0].key, first[2].key} == {each.key for each in second}


def test_the_limit_holds_for_each_set(tmp_path: Path) -> None:
    rows = [row(ONE, source=source, user=f"{source} {i}") for source in ("seen", "unseen") for i in range(3)]
    found = read_questions([write(tmp_path / "a.parquet", *rows)], limit=2)
    assert ["seen 0", "seen 1", "unseen 0", "unseen 1"] == [each.messages[-1]["content"] for each in found]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"data_source": "a"}, "row 0: column 'prompt' is missing", id="no prompt"),
        pytest.param(row("<think> t </think>\n<tool_call>\n{broken\n</tool_call>"), "row 0", id="unreadable truth"),
        pytest.param(row(ONE, tools="[broken"), "row 0: tools is not JSON", id="unreadable tools"),
    ],
)
def test_a_row_that_cannot_be_measured_is_named(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="a.parquet") as caught:
        read_questions([write(tmp_path / "a.parquet", content)])
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.parquet: no such file"):
        read_questions([tmp_path / "gone.parquet"])


def test_a_result_file_gives_the_measurement_back(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", row(ONE), row(NONE, user="Hi"))
    questions = read_questions([file])
    answers = {questions[0].key: Answer(ONE), questions[1].key: Answer("<think> cut", "length")}
    about = {"model": "m", "kind": "checkpoint", "max_tokens": 9, "files": [file], "created": "2026-08-22T10:00:00"}
    found = measure(questions, answers, **about, seconds=1.5, engine="vllm 1")
    write_json(tmp_path / "result.json", found.to_json())
    assert found == load_measurement(tmp_path / "result.json")
    assert found.complete and ["stop", "length"] == [each.finish for each in found.rows]


def test_a_measurement_without_all_answers_says_so(tmp_path: Path) -> None:
    questions = read_questions([write(tmp_path / "a.parquet", row(ONE), row(NONE, user="Hi"))])
    found = measure(questions, {questions[1].key: Answer(NONE)}, model="m", kind="endpoint", max_tokens=9)
    assert not found.complete and 1 == len(found.rows)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "not json", '{"schema": "other/1"}', '{"schema": "verl-toolrl/evaluation/1"}']
)
def test_another_file_is_refused_as_a_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: not a result"):
        load_measurement(tmp_path / "x.json")


def test_a_response_that_utf8_cannot_hold_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"response": "half a pair: \ud800, ü"})
    assert {"response": "half a pair: \ud800, ü"} == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
