"""Which errors of verl's engines lose a session, and which are somebody's mistake and end the run of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError, WorkerCrashedError

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.integrations.rollout_engine import VerlEngine


class EngineDeadError(Exception):
    """By the name of vLLM's, of which a test of names knows that it is there."""


def from_elsewhere(cause: Exception) -> RayTaskError:
    """Return an error as Ray raises it where the result is awaited."""
    task_error = RayTaskError("generate", "Traceback of another process", cause, proctitle="server", ip="127.0.0.1")
    raised = task_error.as_instanceof_cause()
    assert isinstance(raised, RayTaskError)
    return raised


class Client:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def generate(self, *_: Any, **__: Any) -> Any:
        raise self.error


def generate(error: Exception) -> None:
    engine = VerlEngine(Client(error), "vllm")  # type: ignore[arg-type]
    asyncio.run(engine.generate([1], {"max_tokens": 1}, "u_0"))


LOST = [
    pytest.param(ActorDiedError(), "ActorDiedError", id="dead server"),
    pytest.param(WorkerCrashedError(), "WorkerCrashedError", id="crashed worker"),
    pytest.param(ConnectionResetError("gone"), "ConnectionResetError: gone", id="lost connection"),
    pytest.param(asyncio.TimeoutError(), "TimeoutError", id="no answer in time"),
    pytest.param(from_elsewhere(EngineDeadError("see above")), "EngineDeadError: see above", id="dead engine in Ray"),
    pytest.param(from_elsewhere(ConnectionError("refused")), "ConnectionError: refused", id="lost connection in Ray"),
    pytest.param(from_elsewhere(from_elsewhere(EngineDeadError("x"))), "^EngineDeadError: x", id="wrapped twice"),
    pytest.param(
        from_elsewhere(RuntimeError("No available servers in load balancer")), "No available servers", id="no server"
    ),
]


@pytest.mark.parametrize(("error", "said"), LOST)
def test_a_failure_that_nobody_made_loses_the_session_with_its_reason(error: Exception, said: str) -> None:
    with pytest.raises(InfrastructureError, match=said):
        generate(error)


MISTAKES = [
    pytest.param(ValueError("unknown parameter"), id="here"),
    pytest.param(from_elsewhere(ValueError("unknown parameter")), id="in the server"),
    pytest.param(from_elsewhere(RayError("Exception mine.Error isn't serializable")), id="cannot be carried by Ray"),
]


@pytest.mark.parametrize("error", MISTAKES)
def test_a_mistake_goes_on_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        generate(error)
    assert raised.value is error


def test_vllms_dead_engine_is_known_by_its_real_class() -> None:
    exceptions = pytest.importorskip("vllm.v1.engine.exceptions", reason="needs vLLM")
    for error in (exceptions.EngineDeadError(), exceptions.EngineGenerateError()):
        with pytest.raises(InfrastructureError, match=type(error).__name__):
            generate(from_elsewhere(error))


def test_ray_is_not_started_for_any_of_this() -> None:
    assert not ray.is_initialized()
