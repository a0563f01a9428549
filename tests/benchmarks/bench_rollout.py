"""How much the multi-turn loop costs beside generation and tools: against verl's own loop, and with many slow tools.

    python tests/benchmarks/bench_rollout.py

Both loops get the same scripted engine, the same tokenizer and chat template, and the same tools, turn about in one
run. On a machine that others use too, read the ratios.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool
from verl.workers.rollout.replica import TokenOutput

from verl_toolrl.integrations import rollout_loops
from verl_toolrl.rollout import ChatTokens, ScriptedEngine, TurnLimits, make_dialogue, run_dialogue
from verl_toolrl.toolbox import Toolbox, tool

_SECONDS = 0.2
_USERS = 512
_CALLS = 3
_TRAJECTORIES = 128
_ROUNDS = 5

_TEXT = "Stock of the shop, counted by hand this morning: " + ", ".join(f"item {i}: {i * 7}" for i in range(40))


def _look_up(key: str) -> str:
    """Look up a key.

    Args:
        key: What to look up.
    """
    return f"{key}: {_TEXT}"


@tool
async def slow(key: str) -> str:
    """Take 200 ms.

    Args:
        key: What to look up.
    """
    await asyncio.sleep(_SECONDS)
    return key


def _answer(turn: int, calls: int, name: str) -> str:
    if turn >= calls:
        return "All of it is in stock, and the rest is on its way. " * 3
    thought = "I have to look at the stock of this item before I can say how many of them are left in the shop. " * 2
    return f"{thought}\n<tool_call>\n{json.dumps({'name': name, 'arguments': {'key': f'item {turn}'}})}\n</tool_call>"


class _Client:
    """The scripted engine behind verl's signature; answers are tokenised once, so that only the loops are measured."""

    def __init__(self, tokenizer: Any, calls: int) -> None:
        end = tokenizer.eos_token_id
        texts = (_answer(turn, calls, "_look_up") for turn in range(calls + 1))
        self._tokens = [[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
        self._logprobs = [[-0.5] * len(tokens) for tokens in self._tokens]
        self._turns: dict[str, int] = {}

    async def generate(self, request_id: str, **more: Any) -> TokenOutput:
        turn = self._turns.get(request_id, 0)
        self._turns[request_id] = turn + 1
        await asyncio.sleep(0)
        fields = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(
            token_ids=self._tokens[turn], log_probs=self._logprobs[turn], stop_reason="completed", extra_fields=fields
        )


def _config() -> DictConfig:
    return OmegaConf.create(
        {
            "data": {},
            "actor_rollout_ref": {
                "rollout": {
                    "name": "vllm",
                    "seed": 1,
                    "prompt_length": 4096,
                    "response_length": 16384,
                    "max_model_len": None,
                    "full_determinism": False,
                    "custom": {"toolrl": {"toolbox": f"{Path(__file__)}:ours", "audit_every": 0, "tool_tokens": None}},
                    "multi_turn": {
                        "max_user_turns": None,
                        "max_assistant_turns": None,
                        "max_parallel_calls": 4,
                        "max_tool_response_length": 100_000,
                        "tool_response_truncate_side": "middle",
                        "format": "hermes",
                    },
                }
            },
        }
    )


ours = tool(isolation="inline")(_look_up)


def _tokenizer() -> Any:
    path = Path(__file__).resolve().parents[1] / "chat_templates.py"
    spec = importlib.util.spec_from_file_location("chat_templates", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    smollm2 = Path.home() / ".cache" / "verl-toolrl" / "SmolLM2-135M-Instruct"
    if not smollm2.is_dir():
        return module.make_tokenizer("qwen2.5")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = module.QWEN25
    return tokenizer


_ROW = {
    "raw_prompt": [
        {"role": "system", "content": "You keep a shop. " * 20},
        {"role": "user", "content": "How much of everything is left?"},
    ],
    "global_steps": 1,
    "index": 0,
}


def _loops(tokenizer: Any, config: DictConfig) -> dict[str, Callable[[Any], Any]]:
    function_tool(_look_up)
    theirs = ToolListWrap([FUNCTION_TOOL_REGISTRY["_look_up"]])
    common: dict[str, Any] = {
        "trainer_config": DictConfigWrap(config),
        "tokenizer": tokenizer,
        "processor": None,
        "dataset_cls": object,
        "data_config": DictConfigWrap(config.data),
        "hf_model_type": "qwen2",
    }
    return {
        "verl ToolAgentLoop": lambda client: ToolAgentLoop(server_manager=client, tools=theirs, **common),
        "toolrl_native": lambda client: rollout_loops.NativeLoop(server_manager=client, **common),
    }


async def _once(make: Callable[[Any], Any], client: _Client, number: int) -> Any:
    loop = make(client)
    params = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    return await loop.run(params, uid=f"u{number // 8}", session_id=number % 8, **_ROW)


async def _seconds_per_turn(make: Callable[[Any], Any], tokenizer: Any, concurrency: int) -> tuple[float, Any]:
    client, output = _Client(tokenizer, _CALLS), None
    started = time.perf_counter()
    for first in range(0, _TRAJECTORIES, concurrency):
        batch = [_once(make, client, first + i) for i in range(concurrency)]
        output = (await asyncio.gather(*batch))[-1]
    return (time.perf_counter() - started) / (_TRAJECTORIES * (_CALLS + 1)), output


async def _against_verl() -> Table:
    tokenizer, config = _tokenizer(), _config()
    loops = _loops(tokenizer, config)
    table = Table(title="One turn of a trajectory of 3 calls and an answer, without generation", title_justify="left")
    for column in ("trajectories at once", "loop", "us a turn", "of verl's"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for concurrency in (1, 64):
        best: dict[str, float] = {}
        tokens: dict[str, Any] = {}
        for _ in range(_ROUNDS):
            for name, make in loops.items():
                gc.collect()
                seconds, output = await _seconds_per_turn(make, tokenizer, concurrency)
                best[name] = min(seconds, best.get(name, seconds))
                tokens[name] = (output.response_ids, output.response_mask)
        # The comparison is fair only if both did the same work. (Our prompt is longer by `additionalProperties`.)
        assert len({str(each) for each in tokens.values()}) == 1, "the loops wrote different tokens"
        theirs = best["verl ToolAgentLoop"]
        for name, seconds in best.items():
            table.add_row(str(concurrency), name, f"{seconds * 1e6:.0f}", f"{seconds / theirs:.2f}")
    return table


async def _slow_tools() -> Table:
    tokenizer = _tokenizer()
    chat, dialogue = ChatTokens(tokenizer), make_dialogue("native")
    engine = ScriptedEngine(
        tokenizer, lambda request, turn: _answer(turn, _CALLS, "slow"), stop_id=tokenizer.eos_token_id
    )

    async def trajectory(box: Toolbox, number: int) -> None:
        async with box.session(str(number)) as session:
            rollout = await run_dialogue(
                engine=engine,
                chat=chat,
                dialogue=dialogue,
                session=session,
                messages=_ROW["raw_prompt"],  # type: ignore[arg-type]
                limits=TurnLimits(response_tokens=16384),
                request_id=str(number),
            )
        assert [1, 1, 1, 0] == [len(step.results) for step in rollout.trajectory.steps]

    table = Table(title=f"{_USERS} trajectories at once, {_CALLS} calls of 200 ms each", title_justify="left")
    for column in ("seconds", "own CPU seconds", "ideal seconds", "of max(ideal, CPU)"):
        table.add_column(column, justify="right")
    for _ in range(3):
        async with Toolbox([slow], watchdog=None) as box:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.gather(*(trajectory(box, i) for i in range(_USERS)))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        engine = ScriptedEngine(
            tokenizer, lambda request, turn: _answer(turn, _CALLS, "slow"), stop_id=tokenizer.eos_token_id
        )
        ideal = _CALLS * _SECONDS
        table.add_row(f"{wall:.2f}", f"{cpu:.2f}", f"{ideal:.2f}", f"{wall / max(ideal, cpu):.2f}")
    return table


def main() -> None:
    parts: list[Callable[[], Awaitable[Table]]] = [_against_verl, _slow_tools]
    console = Console()
    for part in parts:
        console.print(asyncio.run(part()))


if __name__ == "__main__":
    main()
