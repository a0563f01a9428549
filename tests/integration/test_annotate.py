"""`verl-toolrl annotate` as a user runs it: a process, files, and a judge behind real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.rewards.steptool_offline import read_offline
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, ToolResult, Trajectory


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl_toolrl.cli", "annotate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"COLUMNS": "200", "PATH": ""})


def trajectory(name: str, answer: str, outcome: Outcome = Outcome.OK) -> Trajectory:
    step = Step("", (ToolCall("weather", {"city": "Paris"}),), (ToolResult(outcome, "sunny, 23.5"),))
    return Trajectory(
        (step, Step(answer)),
        messages=({"role": "user", "content": "Temperature in Paris?"},),
        id=name,
        extra={"ground_truth": "23.5"},
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "rollouts.jsonl"
    rows = [trajectory("right", "23.5"), trajectory("wrong", "12"), trajectory("lost", "23.5", Outcome.INFRA_ERROR)]
    path.write_text("\n".join(json.dumps(row.to_dict()) for row in rows) + "\n\n")
    return path


def annotated(path: Path) -> dict[str, Any]:
    rows = [Trajectory.from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    return {str(row.id): row.extra["step_rewards"] for row in rows}


def test_rules_write_rewards_and_the_offline_file(recorded: Path, tmp_path: Path) -> None:
    offline = tmp_path / "train.tsv"
    done = run(recorded, "--offline", offline)
    assert 0 == done.returncode, done.stderr
    assert "2 of 3 trajectories have step rewards" in done.stdout
    assert "1 lost to infrastructure" in done.stdout
    found = annotated(tmp_path / "rollouts.annotated.jsonl")
    assert [0.5, 1.0] == found["right"]["step_rewards"]
    assert [0.0, 0.0] == found["wrong"]["step_rewards"]
    assert "rules:robust" == found["right"]["source"]
    assert (True, False) == (found["wrong"]["valid"], found["lost"]["valid"])
    assert [(0.5, 1.0), (0.0, 0.0)] == [row.rewards for row in read_offline(offline)]


def test_modes_verifiers_and_schemas_are_options(recorded: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "weather", "parameters": {"type": "object", "required": ["town"]}}]))
    output = tmp_path / "out.jsonl"
    done = run(recorded, "-o", output, "--mode", "paper", "--verifier", "numeric", "--alpha", "0.5")
    assert 0 == done.returncode, done.stderr
    assert [1.5, 1.0] == annotated(output)["right"]["step_rewards"]
    done = run(recorded, "-o", output, "--mode", "paper", "--tools", tools)
    assert 0 == done.returncode, done.stderr
    assert [0.0, 1.0] == annotated(output)["right"]["step_rewards"]  # the call breaks the schema


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, [], "No such file"),
        ("", [], "no trajectories"),
        ("{}\n", [], "line 1: trajectory None: KeyError: 'steps'"),
        ('\n{"steps": [}\n', [], "line 2: no JSON"),
        ("[1]\n", [], "line 1: wanted an object, found list"),
        ('{"steps": [7]}\n', [], "line 1"),
        ('{"steps": [{"text": 7}]}\n', [], "line 1: steps[0].text is int, wanted str"),
        ('{"steps": [{"text": "x"}]}\n', [], "extra has no 'ground_truth'"),
        ('{"steps": [{"text": "x"}]}\n', ["--by", "judge"], "a judge needs --judge-url and --judge-model"),
        ('{"steps": [{"text": "x"}]}\n', ["--verifier", "exakt"], "did you mean 'exact'"),
        ('{"steps": [{"text": "x"}]}\n', ["--template", "alpaca"], "wanted one of toolllama"),
        ('{"steps": [{"text": "x"}]}\n', ["--bound", "2"], "could beat a solved one"),
    ],
)
def test_wrong_input_ends_with_one_readable_line(
    tmp_path: Path, text: str | None, options: list[str], message: str
) -> None:
    path = tmp_path / "in.jsonl"
    if text is not None:
        path.write_text(text)
    done = run(path, *options)
    assert 1 == done.returncode
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "in.annotated.jsonl").exists()


def test_text_that_utf8_cannot_carry_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    odd = Trajectory((Step("\ud800 23.5"),), id="odd", extra={"ground_truth": "23.5"})
    path.write_text(json.dumps(odd.to_dict()))
    done = run(path, "--verifier", "numeric", "--offline", tmp_path / "train.tsv")
    assert 0 == done.returncode, done.stderr
    assert [1.0] == annotated(tmp_path / "in.annotated.jsonl")["odd"]["step_rewards"]
    assert "\ud800 23.5<|im_end|>\n" == next(read_offline(tmp_path / "train.tsv")).responses[0]


def test_the_input_is_never_overwritten(recorded: Path) -> None:
    done = run(recorded, "-o", recorded)
    assert 1 == done.returncode
    assert "is the input file" in done.stderr


@pytest.fixture
def judge_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            right = '"final_answer": "23.5"' in body["messages"][1]["content"]
            arguments = {
                "call_worked": [1],
                "helped_answer": [5 if right else 0],
                "task_status": "Solved" if right else "Unsolved",
            }
            call = {"function": {"name": "label_steps", "arguments": json.dumps(arguments)}}
            data = json.dumps({"choices": [{"message": {"tool_calls": [call]}}], "usage": {"total_tokens": 7}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_labels_and_a_stopped_run_goes_on(recorded: Path, tmp_path: Path, judge_url: str) -> None:
    output = tmp_path / "out.jsonl"
    settings = (recorded, "-o", output, "--by", "judge", "--judge-url", judge_url, "--judge-model", "m")
    first = run(*settings, "--max-requests", 4, "--concurrency", 1)  # two trajectories of three judgements
    assert 3 == first.returncode, first.stderr
    assert "1 trajectories were not judged: judge: the budget of 4 requests is used up" in first.stderr
    assert {"right", "lost"} == set(annotated(output))
    second = run(*settings)
    assert 0 == second.returncode, second.stderr
    assert "judge: 2 requests, 14 tokens" in second.stdout
    found = annotated(output)
    assert [1.0, 1.0] == found["right"]["step_rewards"]  # (1 + 5/5) / 2, Solved
    assert [0.5, 0.0] == found["wrong"]["step_rewards"]  # (1 + 0) / 2, Unsolved
    assert not found["lost"]["valid"]


def test_rules_for_the_steps_and_a_judge_for_the_outcome(recorded: Path, tmp_path: Path, judge_url: str) -> None:
    output = tmp_path / "out.jsonl"
    done = run(recorded, "-o", output, "--verifier", "judge", "--judge-url", judge_url, "--judge-model", "m")
    assert 0 == done.returncode, done.stderr
    found = annotated(output)
    assert [0.5, 1.0] == found["right"]["step_rewards"]
    assert [0.0, 0.0] == found["wrong"]["step_rewards"]
    assert "rules:robust" == found["right"]["source"]


def test_a_judge_that_is_down_leaves_no_score(recorded: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run(
        recorded, "-o", output, "--by", "judge", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m",
        "--attempts", 1,
    )  # fmt: skip
    assert 3 == done.returncode
    assert "2 trajectories were not judged" in done.stderr
    assert {"lost"} == set(annotated(output))


def test_a_trajectory_that_ran_out_of_steps_is_unsolved(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    cut = Trajectory((Step("23.5"),), StopReason.MAX_STEPS, id="cut", extra={"ground_truth": "23.5"})
    path.write_text(json.dumps(cut.to_dict()))
    assert 0 == run(path).returncode
    assert [0.0] == annotated(tmp_path / "in.annotated.jsonl")["cut"]["step_rewards"]
