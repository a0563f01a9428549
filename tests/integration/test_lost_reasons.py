"""A session that ends without a trajectory is reported with its reason, wherever in the session the failure happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

from verl_toolrl.errors import AuthorError, ConfigError, DatasetError, InfrastructureError
from verl_toolrl.integrations import lost_sessions, rollout_loops
from verl_toolrl.integrations.lost_sessions import AUTHOR, Groups
from verl_toolrl.integrations.lost_share import LostShare

Reports = list[tuple[str, str, int, str]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    made: Reports = []

    async def report(session: str, reason: str, step: int, kind: str = "infrastructure") -> None:
        made.append((session, reason, step, kind))

    for module in (rollout_loops, lost_sessions):
        monkeypatch.setattr(module, "report_lost", report)
    return made


def run(errors: list[Exception | None]) -> list[Any]:
    """Run the sessions of a prompt, of which some fail before the dialogue begins."""
    place = SimpleNamespace(groups=Groups())

    async def one(number: int, error: Exception | None) -> Any:
        made = object.__new__(rollout_loops.NativeLoop)
        made.place = place

        async def session(*_: Any) -> str:
            if error is not None:
                raise error
            return "an output"

        made._run = session
        return await made.run({}, uid="u", session_id=number, global_steps=3)

    async def everything() -> list[Any]:
        return await asyncio.gather(*(one(*each) for each in enumerate(errors)), return_exceptions=True)

    return asyncio.run(everything())


def config(**toolrl: Any) -> DictConfig:
    rollout = {"name": "vllm", "seed": 3, "prompt_length": 512, "response_length": 512, "max_model_len": None}
    return OmegaConf.create(
        {"data": {}, "actor_rollout_ref": {"rollout": {**rollout, "custom": {"toolrl": toolrl}}}},
    )


def run_for_real(cfg: DictConfig, tokenizer: Any, sessions: int = 2, **row: Any) -> list[Any]:
    """Run the sessions of a prompt, none of which gets as far as the engine."""
    row = {"raw_prompt": [{"role": "user", "content": "Go."}], "uid": "u", "global_steps": 3, "index": 0, **row}

    async def one(number: int) -> Any:
        made = rollout_loops.NativeLoop(DictConfigWrap(cfg), server_manager=None, tokenizer=tokenizer)
        return await made.run({"temperature": 1.0}, session_id=number, **row)

    async def everything() -> list[Any]:
        return await asyncio.gather(*map(one, range(sessions)), return_exceptions=True)

    return asyncio.run(everything())


def test_tools_that_cannot_be_reached_at_the_start_lose_the_session(reports: Reports) -> None:
    assert ["an output", []] == run([None, InfrastructureError("the state's server is away")])
    assert [("u_1", "the state's server is away", 3, "infrastructure")] == reports


def test_a_prompt_that_never_began_fails_with_all_reasons_reported(reports: Reports) -> None:
    results = run([InfrastructureError("away"), InfrastructureError("away")])
    assert [] == results[0] and isinstance(results[1], InfrastructureError)
    assert ["u_0", "u_1"] == [session for session, *_ in reports]


def test_a_server_of_tools_that_is_away_when_a_worker_opens_them_loses_its_sessions(
    reports: Reports, make_tokenizer: Callable[[str], Any], tmp_path: Path
) -> None:
    pytest.importorskip("mcp", reason="needs the MCP SDK")
    (tmp_path / "set.yaml").write_text("tools: [{mcp: {url: 'http://127.0.0.1:9/mcp'}}]\n")
    first, last = run_for_real(config(toolbox=str(tmp_path / "set.yaml")), make_tokenizer("qwen2.5"))
    assert [] == first and isinstance(last, InfrastructureError) and "all sessions of prompt u are lost" in str(last)
    assert [("u_0", 3, "infrastructure"), ("u_1", 3, "infrastructure")] == [(s, step, k) for s, _, step, k in reports]
    assert all("MCP server 'http://127.0.0.1:9/mcp' could not be reached" in reason for _, reason, *_ in reports)


def test_an_authors_mistake_is_reported_as_such_and_no_lost_session(reports: Reports) -> None:
    (result,) = run([ConfigError("no such tool")])
    assert isinstance(result, ConfigError)
    assert [("u_0", "ConfigError: no such tool", 3, AUTHOR)] == reports


def test_the_error_of_a_dead_engine_is_the_reason_of_a_lost_session(reports: Reports) -> None:
    (result,) = run([RuntimeError("EngineCore encountered an issue")])
    assert isinstance(result, RuntimeError)
    assert [("u_0", "RuntimeError: EngineCore encountered an issue", 3, "infrastructure")] == reports


MISTAKES = [
    pytest.param(
        {"toolbox": "quickstrat"}, {}, ConfigError, "did you mean 'quickstart'", id="a worker without the tools"
    ),
    pytest.param(
        {"toolbox": "quickstart"},
        {"extra_info": {"session": {"tols": []}}},
        DatasetError,
        "did you mean 'tools'",
        id="a row that nobody checked",
    ),
    pytest.param(
        {"toolbox": "quickstart"},
        {"raw_prompt": [{"role": "user", "content": "x" * 5000}]},
        DatasetError,
        "the prompt with its tools has",
        id="a prompt that does not fit",
    ),
]


@pytest.mark.parametrize(("toolrl", "row", "kind", "text"), MISTAKES)
def test_an_authors_mistake_that_only_a_session_shows_stops_the_trainer_with_its_text(
    reports: Reports,
    make_tokenizer: Callable[[str], Any],
    toolrl: dict[str, Any],
    row: dict[str, Any],
    kind: type[AuthorError],
    text: str,
) -> None:
    (result,) = run_for_real(config(**toolrl), make_tokenizer("qwen2.5"), sessions=1, **row)
    assert isinstance(result, kind)
    ((session, reason, step, reported),) = reports
    assert ("u_0", 3, AUTHOR) == (session, step, reported)
    with pytest.raises(AuthorError, match=f"session u_0 of step 3: {kind.__name__}: .*{text}"):
        LostShare((4, 2), 1.0).stop_at_mistake({session: {"reason": reason, "global_steps": step, "kind": reported}})


REWARD_ERRORS = [
    pytest.param("ground_truth['answer']", "TypeError", AUTHOR, id="its code, another type"),
    pytest.param("{}['answer']", "KeyError", AUTHOR, id="its code, a key"),
    pytest.param("float('nan')", "AnswerError", AUTHOR, id="an answer that is no number"),
    pytest.param("open('/no/such/file')", "FileNotFoundError", "infrastructure", id="a file system"),
    pytest.param("judge()", "ConnectError", "infrastructure", id="an HTTP client"),
]


@pytest.mark.parametrize(("expression", "name", "kind"), REWARD_ERRORS)
def test_what_a_reward_raises_is_its_authors_mistake_or_a_fault_of_what_it_asks(
    reports: Reports, tmp_path: Path, expression: str, name: str, kind: str
) -> None:
    (tmp_path / "own.py").write_text(
        "def judge():\n    import httpx\n    httpx.get('http://127.0.0.1:9/')\n"
        f"def score(*, response, ground_truth):\n    return {expression}\n"
    )
    cfg = OmegaConf.create(
        {
            "reward": {"reward_kwargs": {"reward": f"{tmp_path / 'own.py'}:score"}},
            "actor_rollout_ref": {"actor": {"optim": {"total_training_steps": 4}}},
        }
    )
    row = {"reward_model": {"ground_truth": "x"}, "global_steps": 3, "uid": "u", "session_id": 1, "response_len": 0}
    data = DataProto(
        batch=TensorDict({"responses": torch.zeros(1, 1, dtype=torch.int64)}, batch_size=1),
        non_tensor_batch={key: np.fromiter([value], dtype=object, count=1) for key, value in row.items()},
    )
    manager = get_reward_manager_cls("toolrl")(config=cfg, tokenizer=SimpleNamespace(decode=lambda *_, **__: ""))

    async def scored() -> list[Any]:
        return await asyncio.gather(manager.run_single(data), return_exceptions=True)

    assert [name] == [type(error).__name__ for error in asyncio.run(scored())]
    ((session, reason, step, reported),) = reports
    assert ("u_1", 3, kind) == (session, step, reported) and reason.startswith(f"the reward raised {name}: ")
