"""Measuring a server over real HTTP: what it answers, what it refuses, and what is kept when it stops answering."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.evaluation.endpoint import Endpoint
from verl_toolrl.evaluation.result import load_measurement
from verl_toolrl.launch.measurement import measure_model

CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
RIGHT = f"<think> t </think>\n<tool_call>\n{CALL}\n</tool_call>"
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


def said(text: str | None, **message: Any) -> tuple[int, Any]:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return 200, {"choices": [choice]}


@contextmanager
def server(reply: Reply, models: tuple[str, ...] = ("small",)) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve OpenAI's API; yields the base address and the bodies of all requests for completions."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"authorization": self.headers.get("Authorization")})
            self.send(*reply(body))

        def send(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four rows that want one call."""
    content = [
        {
            "data_source": "held_out",
            "prompt": [{"role": "user", "content": f"Weather in Paris, {i}?"}],
            "reward_model": {"style": "rule", "ground_truth": RIGHT},
            "extra_info": {"index": i},
        }
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, **{"pause": 0.01, "timeout": 5.0, **options})


def test_every_row_is_asked_once_and_greedily(rows: Path, tmp_path: Path) -> None:
    with server(lambda body: said(RIGHT if "0" in body["messages"][-1]["content"] else "no")) as (url, seen):
        found = measure_model(url, [rows], tmp_path / "r.json", max_tokens=77, endpoint=endpoint(url, api_key="k"))
    assert 4 == len(seen) and all(
        (body["model"], body["temperature"], body["max_tokens"], body["authorization"])
        == ("small", 0.0, 77, "Bearer k")
        for body in seen
    )
    assert 0.25 == found.sets["held_out"].acc and "small" == found.engine
    assert found == load_measurement(tmp_path / "r.json")


def test_calls_that_the_server_read_out_of_the_response_are_scored(rows: Path, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    with server(lambda body: said(None, tool_calls=[call])) as (url, _):
        found = measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url))
    assert 1.0 == found.sets["held_out"].acc


def test_a_server_that_is_busy_is_asked_again(rows: Path, tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    def busy_at_first(body: dict[str, Any]) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        tries[text] = tries.get(text, 0) + 1
        return said(RIGHT) if tries[text] > 1 else (503, {"error": {"message": "busy"}})

    with server(busy_at_first) as (url, _):
        found = measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url))
    assert found.complete and set(tries.values()) == {2}


def test_answers_are_kept_when_the_server_fails_and_resume_asks_for_the_rest(rows: Path, tmp_path: Path) -> None:
    healthy = threading.Event()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        fails = "2" in body["messages"][-1]["content"] and not healthy.is_set()
        return (500, {"error": {"message": "out of memory"}}) if fails else said(RIGHT)

    output = tmp_path / "r.json"
    with server(reply) as (url, seen):
        with pytest.raises(InfrastructureError, match=r"does not answer \(HTTP 500: out of memory; tried 4 times\)"):
            measure_model(url, [rows], output, endpoint=endpoint(url, concurrency=1))
        kept = load_measurement(output)
        assert 2 == len(kept.rows) and not kept.complete
        healthy.set()
        seen.clear()
        found = measure_model(url, [rows], output, resume=True, endpoint=endpoint(url))
    assert found.complete and 2 == len(seen)


def test_a_measurement_that_is_complete_is_left_as_it_is(rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    with server(lambda body: said(RIGHT)) as (url, seen):
        measure_model(url, [rows], output, endpoint=endpoint(url))
        content = output.read_bytes()
        seen.clear()
        found = measure_model(url, [rows], output, resume=True, endpoint=endpoint(url))
    assert (content, []) == (output.read_bytes(), seen) and "small" == found.engine


def test_nobody_listening_is_said_with_the_address(rows: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nothing else can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(InfrastructureError, match=f"{url}/models does not answer"):
            measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url))
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("models", "name", "message"),
    [
        (("small", "large"), "", "has 2 models, name one: small, large"),
        (("small", "large"), "larg", "no model 'larg', did you mean 'large'"),
        ((), "", "has 0 models"),
    ],
)
def test_the_model_must_be_one_of_the_server(
    models: tuple[str, ...], name: str, message: str, rows: Path, tmp_path: Path
) -> None:
    with server(lambda body: said(RIGHT), models) as (url, _), pytest.raises(ConfigError, match=message):
        measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url, model=name))


@pytest.mark.parametrize("content", [{}, {"choices": []}, {"choices": [{"message": None}]}, []])
def test_another_service_is_recognised(content: Any, rows: Path, tmp_path: Path) -> None:
    with server(lambda body: (200, content)) as (url, _), pytest.raises(InfrastructureError, match="OpenAI's API"):
        measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url))


def test_a_refusal_is_an_error_of_the_user_and_is_not_tried_again(rows: Path, tmp_path: Path) -> None:
    with server(lambda body: (401, {"error": {"message": "wrong key"}})) as (url, seen):
        with pytest.raises(ConfigError, match="HTTP 401: wrong key"):
            measure_model(url, [rows], tmp_path / "r.json", endpoint=endpoint(url, concurrency=1))
    assert 1 == len(seen)


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], env={"COLUMNS": "150"})


def test_the_command_shows_figures_and_the_difference_to_another_result(rows: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    with server(lambda body: said("no")) as (url, _):
        assert 0 == run(url, rows, "-o", before).exit_code
    with server(lambda body: said(RIGHT)) as (url, _):
        result = run(url, rows, "-o", after, "--compare", before)
    assert 0 == result.exit_code, result.output
    assert (
        "95 % paired bootstrap interval" in result.output
        and "+100.0 (+100.0 to +100.0)" in result.output
        and "-3.00" in result.output
    )


def test_the_command_does_not_overwrite_a_result(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    result = run("http://127.0.0.1:1/v1", rows, "-o", tmp_path / "r.json")
    assert isinstance(result.exception, ConfigError) and "exists" in str(result.exception)


def test_the_command_says_what_is_kept(rows: Path, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        return said(RIGHT) if "0" in body["messages"][-1]["content"] else (200, {"nothing": 1})

    with server(reply) as (url, _):
        result = run(url, rows, "-o", tmp_path / "r.json", "--concurrency", 1)
    assert 3 == result.exit_code and "kept 1 rows" in result.output
