"""The toolbox's batch of faults through the whole loop: healthy trajectories keep their tokens, the others are lost."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from verl_toolrl.formats import write_response
from verl_toolrl.rollout import (
    ChatTokens,
    Rollout,
    ScriptedEngine,
    SessionLost,
    TurnLimits,
    make_dialogue,
    run_dialogue,
)
from verl_toolrl.rollout.audit import audit
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import Outcome, StopReason

_COUNT = 400


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    """The tools and plans of tests/integration/test_toolbox_faults.py."""
    path = Path(__file__).with_name("test_toolbox_faults.py")
    spec = importlib.util.spec_from_file_location("toolbox_faults", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toolbox(faults: ModuleType) -> Toolbox:
    names = (
        "hangs ignores_cancellation thread_hangs crashes raises_oddly floods garbage not_serialisable needs_retries "
        "blocks_the_loop runs_what_the_model_wrote Notes fine"
    )
    return Toolbox([getattr(faults, name) for name in names.split()], watchdog=None)


def plan(faults: ModuleType, number: int) -> list[tuple[Any, Outcome]]:
    """What trajectory `number` calls and how each must end; without the tools that live in worker processes."""
    return [each for each in faults._plan(number) if not each[0].name.startswith("process_")]


def roll(faults: ModuleType, tokenizer: Any, numbers: Iterable[int]) -> dict[int, Rollout | SessionLost]:
    """Run trajectories at once: each makes its calls in two steps, then answers."""
    numbers = list(numbers)

    def script(request: str, turn: int) -> str:
        calls = [call for call, _ in plan(faults, int(request))]
        parts = [calls[:1], calls[1:]]
        return write_response(parts[turn], "hermes", response=f"Step {turn}.") if turn < 2 else f"Done with {request}."

    chat, dialogue = ChatTokens(tokenizer), make_dialogue("native")
    engine = ScriptedEngine(tokenizer, script, stop_id=tokenizer.eos_token_id)

    async def one(box: Toolbox, number: int, places: asyncio.Semaphore) -> Rollout | SessionLost:
        async with places, box.session(str(number)) as session:
            try:
                rollout = await run_dialogue(
                    engine=engine,
                    chat=chat,
                    dialogue=dialogue,
                    session=session,
                    messages=[{"role": "user", "content": "Go."}],
                    limits=TurnLimits(response_tokens=100_000),
                    request_id=str(number),
                )
            except SessionLost as err:
                return err
            assert [] == list(audit(rollout, chat, dialogue, session.schemas))
            return rollout

    async def run() -> dict[int, Rollout | SessionLost]:
        places = asyncio.Semaphore(64)
        async with toolbox(faults) as box:
            results = await asyncio.gather(*(one(box, number, places) for number in numbers))
            assert not box.sessions
        return dict(zip(numbers, results))

    faults.released.clear()
    try:
        return asyncio.run(run())
    finally:
        faults.released.set()


def test_healthy_trajectories_keep_their_tokens_beside_failing_ones(
    faults: ModuleType, make_tokenizer: Callable[[str], Any]
) -> None:
    tokenizer = make_tokenizer("qwen2.5")
    together = roll(faults, tokenizer, range(_COUNT))
    doomed = {
        number for number in range(_COUNT) if any(outcome.is_infrastructure for _, outcome in plan(faults, number))
    }
    assert doomed == {number for number, result in together.items() if isinstance(result, SessionLost)}
    healthy = [number for number in range(_COUNT) if number not in doomed]
    assert len(healthy) > _COUNT // 2 and doomed
    for number in healthy:
        rollout = together[number]
        assert isinstance(rollout, Rollout) and StopReason.FINISHED is rollout.trajectory.stop_reason
        got = [result.outcome for step in rollout.trajectory.steps for result in step.results]
        assert [outcome for _, outcome in plan(faults, number)] == got
    alone = roll(faults, tokenizer, healthy)
    for number in healthy:
        one, other = together[number], alone[number]
        assert isinstance(one, Rollout) and isinstance(other, Rollout)
        assert (one.response_ids, one.response_mask) == (other.response_ids, other.response_mask), number
