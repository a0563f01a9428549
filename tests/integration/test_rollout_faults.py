"""The toolbox's batch of faults through the whole loop: healthy trajectories keep their tokens, the others are lost."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
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
from verl_toolrl.trajectory import StopReason

_COUNT = 1000


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The tools and plans of tests/integration/test_toolbox_faults.py, with those that live in worker processes."""
    module = load("rollout_faults", Path(__file__).with_name("test_toolbox_faults.py"))
    path = tmp_path_factory.mktemp("faults") / "rollout_fault_tools.py"
    path.write_text(module._PROCESS_TOOLS)
    tools = vars(load("rollout_fault_tools", path))
    vars(module).update({name: tools[name] for name in ("process_hangs", "process_dies", "process_leaks")})
    yield module
    for name in ("rollout_faults", "rollout_fault_tools"):
        del sys.modules[name]


def toolbox(faults: ModuleType) -> Toolbox:
    names = (
        "hangs ignores_cancellation thread_hangs crashes raises_oddly floods garbage not_serialisable needs_retries "
        "blocks_the_loop runs_what_the_model_wrote Notes fine process_hangs process_dies process_leaks"
    )
    return Toolbox([getattr(faults, name) for name in names.split()])


def leaks(faults: ModuleType, number: int) -> bool:
    """Whether it calls the tool that says how much its process has kept, which differs from run to run."""
    return any(call.name == "process_leaks" for call, _ in faults._plan(number))


def roll(faults: ModuleType, tokenizer: Any, numbers: Iterable[int]) -> dict[int, Rollout | SessionLost]:
    """Run trajectories at once: each makes its calls in two steps, then answers."""
    numbers = list(numbers)

    def script(request: str, turn: int) -> str:
        calls = [call for call, _ in faults._plan(int(request))]
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
        number for number in range(_COUNT) if any(outcome.is_infrastructure for _, outcome in faults._plan(number))
    }
    assert doomed == {number for number, result in together.items() if isinstance(result, SessionLost)}
    healthy = [number for number in range(_COUNT) if number not in doomed]
    assert len(healthy) > _COUNT // 2 and doomed
    for number in healthy:
        rollout = together[number]
        assert isinstance(rollout, Rollout) and StopReason.FINISHED is rollout.trajectory.stop_reason
        got = [result.outcome for step in rollout.trajectory.steps for result in step.results]
        assert [outcome for _, outcome in faults._plan(number)] == got
    same = [number for number in healthy if not leaks(faults, number)]
    alone = roll(faults, tokenizer, same)
    for number in same:
        one, other = together[number], alone[number]
        assert isinstance(one, Rollout) and isinstance(other, Rollout)
        assert (one.response_ids, one.response_mask) == (other.response_ids, other.response_mask), number
