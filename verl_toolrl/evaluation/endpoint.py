"""Responses from a server that speaks OpenAI's chat completions API (vLLM, SGLang, llama.cpp, a hosted model)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import ConfigError, InfrastructureError, nearest
from verl_toolrl.evaluation.questions import Question
from verl_toolrl.evaluation.result import Answer

__all__ = ["Endpoint", "ask", "choose_model"]

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes after which the same request may succeed."""
_TRIES = 4
# A server that is there takes a connection at once, however long its answer takes.
_CONNECT_S = 10.0


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers."""

    url: str
    """Base address, usually ending in `/v1`."""
    model: str = ""
    """Name of the model there; empty until `choose_model` has asked."""
    api_key: str = ""
    concurrency: int = 16
    """Requests in flight."""
    timeout: float = 120.0
    """Seconds that one request may take."""
    pause: float = 1.0
    """Seconds before the second try; doubled before each further one."""

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


async def choose_model(endpoint: Endpoint) -> str:
    """Return the name of the model to ask for: the one given, or the only one there.

    Raises:
        ConfigError: If the model is not there, or none was named and there are several.
        InfrastructureError: If the server does not answer, or not in the form of OpenAI's API.
    """
    import httpx

    address = f"{endpoint.url.rstrip('/')}/models"
    async with httpx.AsyncClient(headers=endpoint.headers(), timeout=_limits(endpoint)) as client:
        response = await _send(client, "GET", address, None, endpoint)
    try:
        names = [str(entry["id"]) for entry in response.json()["data"]]
    except (ValueError, TypeError, KeyError) as err:
        raise InfrastructureError(
            f"{address} does not answer like OpenAI's API; the address usually ends in /v1"
        ) from err
    if endpoint.model:
        if endpoint.model not in names:
            raise ConfigError(
                f"{endpoint.url} has no model {endpoint.model!r}{nearest(endpoint.model, names)}; it has: "
                f"{', '.join(names) or 'none'}"
            )
        return endpoint.model
    if len(names) != 1:
        raise ConfigError(f"{endpoint.url} has {len(names)} models, name one: {', '.join(names)}")
    return names[0]


async def ask(
    endpoint: Endpoint, questions: Sequence[Question], *, max_tokens: int, done: Callable[[str, Answer], None]
) -> None:
    """Ask every question greedily.

    Args:
        endpoint: Where; with a model.
        questions: What.
        max_tokens: Limit of a response.
        done: Called with key and answer as soon as one is there.

    Raises:
        InfrastructureError: If a request fails although it was tried again; what was answered before was handed on.
        ConfigError: If the server refuses a request (a wrong key, a prompt that is too long).
    """
    import httpx

    waiting = list(reversed(questions))

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            question = waiting.pop()
            body: dict[str, Any] = {
                "model": endpoint.model,
                "messages": question.messages,
                "max_tokens": max_tokens,
                "temperature": 0.0,
            }
            if question.tools:
                body["tools"] = question.tools
            address = f"{endpoint.url.rstrip('/')}/chat/completions"
            response = await _send(client, "POST", address, body, endpoint)
            done(question.key, _answer(response, address))

    async with httpx.AsyncClient(headers=endpoint.headers(), timeout=_limits(endpoint)) as client:
        workers = [asyncio.ensure_future(work(client)) for _ in range(min(endpoint.concurrency, len(waiting)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()


def _limits(endpoint: Endpoint) -> Any:
    import httpx

    return httpx.Timeout(endpoint.timeout, connect=min(_CONNECT_S, endpoint.timeout))


async def _send(client: Any, method: str, address: str, body: Any, endpoint: Endpoint) -> Any:
    import httpx

    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(endpoint.pause * 2 ** (attempt - 1))
        try:
            response = await client.request(method, address, json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as err:
            raise ConfigError(f"{address}: {err}") from err
        except httpx.ConnectTimeout:
            problem = f"no connection within {client.timeout.connect:g} s"
            continue
        except httpx.TimeoutException:
            problem = f"no answer within {endpoint.timeout:g} s"
            continue
        except httpx.HTTPError as err:
            problem = str(err) or type(err).__name__
            continue
        if response.status_code < 400:
            return response
        problem = f"HTTP {response.status_code}: {_said(response)}"
        if response.status_code not in _AGAIN:
            raise ConfigError(f"{address} refused the request: {problem}")
    raise InfrastructureError(f"{address} does not answer ({problem}; tried {_TRIES} times)")


def _said(response: Any) -> str:
    """What the server says about an error, in one line."""
    try:
        content = response.json()
        error = content.get("error", content)
        text = error.get("message", error) if isinstance(error, Mapping) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:300]


def _answer(response: Any, address: str) -> Answer:
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        text += _calls_as_text(message.get("tool_calls") or (), text)
        return Answer(text, str(choice.get("finish_reason") or "stop"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as err:
        raise InfrastructureError(f"{address} does not answer like OpenAI's API ({type(err).__name__}: {err})") from err


def _calls_as_text(calls: Any, text: str) -> str:
    """Write calls that the server has read out of the response back as ToolRL's block, which is what is scored."""
    lines = []
    for call in calls:
        arguments = call["function"]["arguments"]
        try:
            arguments = json.loads(arguments)
        except (ValueError, TypeError, RecursionError):
            pass  # the model's mistake: scored as it is
        lines.append(json.dumps({"name": call["function"]["name"], "parameters": arguments}, ensure_ascii=False))
    if not lines:
        return ""
    start = "\n" if text and not text.endswith("\n") else ""
    return start + "\n".join(["<tool_call>", *lines, "</tool_call>"])
