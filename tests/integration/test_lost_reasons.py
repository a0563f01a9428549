"""A session that infrastructure ends is reported with its reason, wherever in the session the failure happens."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.integrations import rollout_loops
from verl_toolrl.integrations.lost_sessions import Groups

Reports = list[tuple[str, str, int]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    made: Reports = []

    async def report(session: str, reason: str, step: int) -> None:
        made.append((session, reason, step))

    monkeypatch.setattr(rollout_loops, "report_lost", report)
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


def test_tools_that_cannot_be_reached_at_the_start_lose_the_session(reports: Reports) -> None:
    assert ["an output", []] == run([None, InfrastructureError("the state's server is away")])
    assert [("u_1", "the state's server is away", 3)] == reports


def test_a_prompt_that_never_began_fails_with_all_reasons_reported(reports: Reports) -> None:
    results = run([InfrastructureError("away"), InfrastructureError("away")])
    assert [] == results[0] and isinstance(results[1], InfrastructureError)
    assert ["u_0", "u_1"] == [session for session, _, _ in reports]


def test_an_authors_mistake_is_no_lost_session(reports: Reports) -> None:
    (result,) = run([ConfigError("no such tool")])
    assert isinstance(result, ConfigError) and [] == reports
