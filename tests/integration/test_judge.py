"""The judge against a real HTTP server that speaks the chat-completions protocol, well and badly."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.rewards.judge import (
    Judge,
    JudgeError,
    Judgement,
    JudgeRefusedError,
    JudgeStoppedError,
    judge_prompt,
    judged_rewards,
)
from verl_toolrl.trajectory import Outcome, Step, ToolCall, ToolResult, Trajectory

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Endpoint:
    """A server on this machine; `answer(request number, body)` gives status, JSON and headers."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda n, body: (200, completion(body))
        self.seconds = 0.0
        self.in_the_air = self.most_in_the_air = 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append({"path": self.path, **body})
                    endpoint.headers.append(dict(self.headers))
                    endpoint.in_the_air += 1
                    endpoint.most_in_the_air = max(endpoint.most_in_the_air, endpoint.in_the_air)
                time.sleep(endpoint.seconds)
                status, payload, *extra = endpoint.answer(number, body)
                with lock:
                    endpoint.in_the_air -= 1
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                try:
                    self.send_response(status)
                    for name, value in (extra[0] if extra else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client gave up waiting, which is what some tests are about
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def labels(worked: Any, helped: Any, status: Any) -> dict[str, Any]:
    arguments = json.dumps({"call_worked": worked, "helped_answer": helped, "task_status": status})
    return message({"tool_calls": [{"type": "function", "function": {"name": "label_steps", "arguments": arguments}}]})


def message(content: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **content}}], "usage": {"total_tokens": 100}}


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """A good judge: as many scores as it was asked for."""
    steps = body["tools"][0]["function"]["parameters"]["properties"]["call_worked"]["minItems"]
    return labels([1] * steps, [5] * steps, "Solved")


def trajectory(question: str = "Weather in Paris?", answer: str = "sunny") -> Trajectory:
    step = Step("", (ToolCall("weather", {"city": "Paris"}),), (ToolResult(Outcome.OK, "sunny, 23"),))
    other = Step("", (ToolCall("clock", {}),), (ToolResult(Outcome.TOOL_ERROR, "no clock"),))
    return Trajectory((step, other, Step(answer)), messages=({"role": "user", "content": question},), id="t1")


def judge(endpoint: Endpoint, *trajectories: Trajectory, **options: Any) -> list[list[Judgement]]:
    async def run() -> list[list[Judgement]]:
        settings = {"base_url": endpoint.url, "model": "m", "backoff": 0.01, **options}
        async with Judge(**settings) as asked:
            return list(await asyncio.gather(*(asked.judge(t) for t in trajectories)))

    return asyncio.run(run())


def test_k_judgements_become_step_rewards(endpoint: Endpoint) -> None:
    rounds = [labels([1, 0], [5, 1], "Solved"), labels([1, 0], [4, 0], "Unsure"), labels([1.0, 0], [3, 0], "Unsolved")]
    endpoint.answer = lambda n, body: (200, rounds[body.get("seed", 0)])
    (found,) = judge(endpoint, trajectory())
    assert found[0] == Judgement((1, 0), (5, 1), "Solved")
    rewards = judged_rewards(found)
    # mean of (1 + 1)/2, (1 + .8)/2, (1 + .6)/2; mean of .2/2, 0, 0; mean of 1, .5, 0.
    assert (0.9, 1 / 30, 0.5) == pytest.approx(rewards.step_rewards)
    assert rewards.score == pytest.approx(sum(rewards.components.values()))


def test_the_request_forces_one_tool_and_hands_over_data(endpoint: Endpoint) -> None:
    judge(endpoint, trajectory(), judgements=1, api_key="secret", model="qwen")
    (request,) = endpoint.requests
    assert "/v1/chat/completions" == request["path"]
    assert "qwen" == request["model"]
    assert {"type": "function", "function": {"name": "label_steps"}} == request["tool_choice"]
    assert (
        "Bearer secret"
        == endpoint.headers[0]["authorization" if "authorization" in endpoint.headers[0] else "Authorization"]
    )
    scores = request["tools"][0]["function"]["parameters"]["properties"]["helped_answer"]
    assert (2, 2, 5) == (scores["minItems"], scores["maxItems"], scores["items"]["maximum"])
    material = json.loads(request["messages"][1]["content"])
    assert "Weather in Paris?" == material["task"]
    assert "sunny" == material["final_answer"]
    call = {"tool": "weather", "arguments": {"city": "Paris"}, "returned": "sunny, 23"}
    assert [call] == material["steps"][0]["calls"]


def test_long_answers_of_tools_are_cut_and_say_so() -> None:
    long = Step("", (ToolCall("f"),), (ToolResult(Outcome.OK, "x" * 50),))
    prompt = judge_prompt(Trajectory((long, Step("a"))), max_content_chars=10)
    assert "xxxxxxxxxx [... 40 more characters]" in prompt[1]["content"]


def test_text_that_utf8_cannot_carry_reaches_the_judge(endpoint: Endpoint) -> None:
    judge(endpoint, trajectory(answer="\ud800 sunny é"), judgements=1)
    assert "? sunny é" == json.loads(endpoint.requests[0]["messages"][1]["content"])["final_answer"]


NONSENSE = {
    "too few scores": labels([1], [5, 5], "Solved"),
    "too many": labels([1, 1, 1], [5, 5], "Solved"),
    "out of range": labels([1, 2], [5, 5], "Solved"),
    "negative": labels([1, 1], [5, -1], "Solved"),
    "half": labels([1, 1], [5, 2.5], "Solved"),
    "truth value": labels([True, 1], [5, 5], "Solved"),
    "text": labels(["1", 1], [5, 5], "Solved"),
    "no list": labels(1, [5, 5], "Solved"),
    "nan": message(
        {
            "tool_calls": [
                {
                    "function": {
                        "arguments": '{"call_worked": [NaN, 1], "helped_answer": [5, 5], "task_status": "Solved"}'
                    }
                }
            ]
        }
    ),  # fmt: skip
    "infinity": message(
        {
            "tool_calls": [
                {
                    "function": {
                        "arguments": '{"call_worked": [1, 1], "helped_answer": [Infinity, 5], "task_status": "Solved"}'
                    }
                }
            ]
        }
    ),  # fmt: skip
    "status": labels([1, 1], [5, 5], "Great"),
    "status of a wrong type": labels([1, 1], [5, 5], ["Solved"]),
    "missing field": message({"tool_calls": [{"function": {"arguments": "{}"}}]}),
    "no JSON": message({"tool_calls": [{"function": {"arguments": "{call_worked: ["}}]}),
    "no call": message({"content": "It is solved, full marks."}),
    "no choices": {"choices": []},
    "no completion": ["hello"],
    "no body": b"<html>oops</html>",
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_asked_again_and_then_is_an_infrastructure_failure(endpoint: Endpoint, nonsense: Any) -> None:
    endpoint.answer = lambda n, body: (200, nonsense)
    with pytest.raises(JudgeError, match=r"judge: .*\(after 2 attempts\)") as caught:
        judge(endpoint, trajectory(), judgements=1, attempts=2)
    assert isinstance(caught.value, InfrastructureError)
    assert 2 == len(endpoint.requests)


def test_one_bad_answer_among_good_ones_is_repaired_by_asking_again(endpoint: Endpoint) -> None:
    endpoint.answer = lambda n, body: (200, labels([9, 9], [9, 9], "?") if n == 0 else completion(body))
    (found,) = judge(endpoint, trajectory(), judgements=2)
    assert [Judgement((1, 1), (5, 5), "Solved")] * 2 == found
    assert 3 == len(endpoint.requests)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again_after_a_while(endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda n, body: (status, {}, {"Retry-After": "0.2"}) if n < 2 else (200, completion(body))
    start = time.monotonic()
    judge(endpoint, trajectory(), judgements=1)
    assert 3 == len(endpoint.requests)
    assert time.monotonic() - start >= 0.4  # twice what the server asked for


def test_a_server_that_stays_down_is_a_failure_and_no_score(endpoint: Endpoint) -> None:
    endpoint.answer = lambda n, body: (500, {})
    with pytest.raises(JudgeError, match=r"answered 500 \(after 3 attempts\)"):
        judge(endpoint, trajectory(), judgements=1, attempts=3)
    with pytest.raises(JudgeError, match=r"ConnectError.*\(after 2 attempts\)"):
        judge(endpoint, trajectory(), judgements=1, attempts=2, base_url="http://127.0.0.1:9/v1")


def test_a_slow_server_times_out(endpoint: Endpoint) -> None:
    endpoint.seconds = 1.0
    with pytest.raises(JudgeError, match="ReadTimeout"):
        judge(endpoint, trajectory(), judgements=1, attempts=1, timeout=0.2)


def outcomes(endpoint: Endpoint, *trajectories: Trajectory, **options: Any) -> list[Any]:
    """Judge one after the other; errors come back as values."""

    async def run() -> list[Any]:
        async with Judge(endpoint.url, "m", judgements=1, concurrency=1, **options) as asked:
            return list(await asyncio.gather(*map(asked.judge, trajectories), return_exceptions=True))

    return asyncio.run(run())


def test_a_refused_key_stops_the_run_at_the_first_request(endpoint: Endpoint) -> None:
    endpoint.answer = lambda n, body: (401, {"error": "no such key"})
    found = outcomes(endpoint, *(trajectory(f"q{n}") for n in range(5)))
    assert [JudgeStoppedError] * 5 == [type(error) for error in found]
    assert "refused with 401" in str(found[4]) and "no such key" in str(found[4])
    assert 1 == len(endpoint.requests)


def test_a_refused_request_is_not_repeated_and_stops_no_other(endpoint: Endpoint) -> None:
    endpoint.answer = lambda n, body: (400, {"error": "too long"}) if n == 0 else (200, completion(body))
    first, second = outcomes(endpoint, trajectory("a"), trajectory("b"))
    assert isinstance(first, JudgeRefusedError) and "too long" in str(first)
    assert [Judgement((1, 1), (5, 5), "Solved")] == second
    assert 2 == len(endpoint.requests)


def test_concurrency_is_bounded(endpoint: Endpoint) -> None:
    endpoint.seconds = 0.05
    judge(endpoint, *(trajectory(f"q{n}") for n in range(8)), judgements=2, concurrency=3)
    assert 16 == len(endpoint.requests)
    assert endpoint.most_in_the_air <= 3


@pytest.mark.parametrize(
    ("budget", "most", "match"),
    [({"max_requests": 5}, 5, "budget of 5 requests"), ({"max_tokens_total": 300}, 3, "budget of 300 tokens")],
    ids=["requests", "tokens"],  # a request costs 100 tokens
)
def test_cost_is_bounded(endpoint: Endpoint, budget: dict[str, int], most: int, match: str) -> None:
    found = outcomes(endpoint, *(trajectory(f"q{n}") for n in range(10)), **budget)
    stopped = [str(error) for error in found if isinstance(error, JudgeStoppedError)]
    assert (most, most, 10 - most) == (len(endpoint.requests), 10 - len(stopped), len(stopped))
    assert match in stopped[0]


def test_judgements_are_cached_and_a_run_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "judgements.jsonl"
    many = [trajectory(f"q{n}") for n in range(4)]
    with pytest.raises(JudgeStoppedError):
        judge(endpoint, *many, judgements=2, max_requests=3, concurrency=1, cache=cache)
    assert 3 == len(cache.read_text().splitlines())
    with cache.open("a") as file:
        file.write('{"key": "cut off in the mid')  # what a killed run leaves
    found = judge(endpoint, *many, judgements=2, cache=cache)
    assert 8 == len(endpoint.requests)  # 3 and the 5 that were missing
    again = judge(endpoint, *many, judgements=2, cache=cache)
    assert found == again
    assert 8 == len(endpoint.requests)


def test_what_decides_a_judgement_is_part_of_its_key(endpoint: Endpoint, tmp_path: Path) -> None:
    cache = tmp_path / "j.jsonl"
    judge(endpoint, trajectory(), judgements=1, cache=cache)
    for change in ({"model": "other"}, {"temperature": 0.5}, {"max_content_chars": 3}):
        before = len(endpoint.requests)
        judge(endpoint, trajectory(), judgements=1, cache=cache, **change)
        assert before + 1 == len(endpoint.requests), change
    before = len(endpoint.requests)
    judge(endpoint, trajectory(answer="rainy"), judgements=1, cache=cache)
    assert before + 1 == len(endpoint.requests)


def test_wrong_settings_are_named(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="judgements is 0"):
        Judge(base_url=endpoint.url, model="m", judgements=0)
    with pytest.raises(ConfigError, match="has no http://"):
        Judge(base_url="localhost:8000/v1", model="m")
    with pytest.raises(ConfigError, match="async with"):
        asyncio.run(Judge(base_url=endpoint.url, model="m", judgements=1).judge(trajectory()))
    with pytest.raises(ConfigError, match="has no step"):
        judge(endpoint, Trajectory(()))
