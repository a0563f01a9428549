"""What our reward manager, agent loop and trainer mixin add to a step of stock verl, and whether memory stays flat.

    python tests/benchmarks/bench_training.py                  # the parts, on one core, in seconds
    python tests/benchmarks/bench_training.py --runs FOLDER --model M --train T --val V   # two real runs of some steps

The parts compare with their counterparts in verl: a session through verl's `naive` manager with a plain function and
through ours; the numbers that the mixin adds to a step of 2,048 trajectories; GDPO against verl's GRPO. The runs are
the same recipe and the same plain reward, once with stock trainer, loop and manager, and once with ours: seconds a
step, the log's keys, memory. Stock verl looks for finished rollouts every 2 seconds and ours every 0.1, so a step of
ours may well be shorter; `without waiting` leaves generation out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")

SESSIONS = 2048
"""ToolRL's step: 512 prompts with 4 rollouts."""
TRUTH = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1, "y": "two"}}\n</tool_call>'
RESPONSE = TRUTH.replace("a </think>", "I should look at what the user wants and call f. " * 8 + "</think>")


class Characters:
    """A tokenizer with a token a character, so that what is measured is not a tokenizer."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return bytes(ids.tolist()).decode()


def score(response: str) -> float:
    """The plain reward of both runs. It differs within a group: rows without advantage are left out of updates."""
    return float(len(response) % 5)


def plain(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """The same as verl takes it."""
    return score(solution_str)


def per_call(call: Callable[[], Any], repeat: int = 5) -> float:
    """Best processor seconds of several calls."""
    times = []
    for _ in range(repeat):
        gc.collect()
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def parts() -> None:
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.trainer.ppo import core_algos

    from verl_toolrl.credit import gdpo_advantages
    from verl_toolrl.integrations.reward_info import group_metrics, training_metrics

    ids = torch.tensor([list(RESPONSE.encode())])
    columns: dict[str, Any] = {
        "reward_model": {"style": "rule", "ground_truth": TRUTH},
        "data_source": "rlla",
        "extra_info": {},
        "global_steps": 1,
        "response_len": ids.shape[1],
        "tool_extra_fields": {},
        "__num_turns__": 2,
    }
    arrays = {key: np.fromiter([value], dtype=object, count=1) for key, value in columns.items()}
    tensors = {"prompts": ids, "responses": ids, "attention_mask": torch.ones(1, 2 * ids.shape[1], dtype=torch.int64)}
    session = DataProto(batch=TensorDict(tensors, batch_size=1), non_tensor_batch=arrays)
    config = OmegaConf.create(
        {
            "reward": {"reward_kwargs": {"mode": "robust"}},
            "actor_rollout_ref": {"actor": {"optim": {"total_training_steps": 100}}},
        }
    )

    def scored(name: str, count: int = 256) -> float:
        manager = get_reward_manager_cls(name)(config=config, tokenizer=Characters(), compute_score=plain)

        async def all_of_them() -> Any:
            manager.loop = asyncio.get_running_loop()
            return await asyncio.gather(*(manager.run_single(session) for _ in range(count)))

        return per_call(lambda: asyncio.run(all_of_them())) / count

    theirs, ours = scored("naive"), scored("toolrl")
    print(f"a session through verl's naive manager, plain reward: {1e6 * theirs:7.0f} us")
    print(f"a session through ours, robust and what is watched:   {1e6 * ours:7.0f} us")
    print(
        f"  more for {SESSIONS} sessions: {SESSIONS * (ours - theirs):.3f} s, spread over reward.num_workers processes"
    )

    manager = get_reward_manager_cls("toolrl")(config=config, tokenizer=Characters(), compute_score=None)
    info = asyncio.run(manager.run_single(session))["reward_extra_info"]
    infos = [info] * SESSIONS
    scores = [(str(number // 4), float(number % 3)) for number in range(SESSIONS)]
    seconds = per_call(lambda: (training_metrics(infos), group_metrics(scores)))
    print(f"the mixin's numbers for {SESSIONS} trajectories:              {seconds:.3f} s a step")

    components = torch.rand(SESSIONS, 2)
    group = torch.arange(SESSIONS) // 4
    mask = torch.ones(SESSIONS, 1024)
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = components.sum(1)
    uids = np.array([str(int(number)) for number in group], dtype=object)
    gdpo = per_call(lambda: gdpo_advantages(components, group).unsqueeze(1) * mask)
    grpo = per_call(lambda: core_algos.compute_grpo_outcome_advantage(rewards, mask, uids))
    print(f"advantages of {SESSIONS} responses: GDPO {gdpo:.4f} s, verl's GRPO {grpo:.4f} s ({gdpo / grpo:.2f}x)")


def read(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["data"]) for line in lines if line["step"] > 0]


def runs(folder: Path, model: str, train: str, val: str, steps: int, more: list[str]) -> None:
    from rich.console import Console

    from verl_toolrl.launch.launcher import execute, plan_run

    shared = [
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={train}",
        f"data.val_files={val}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=1000",
        *more,
    ]
    stock = [
        "trainer.v1.trainer_mode=sync",
        "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
        "reward.reward_manager.name=naive",
        f"reward.custom_reward_function.path={Path(__file__).resolve()}",
        "reward.custom_reward_function.name=plain",
    ]
    found = {}
    ours = [
        "~reward.reward_kwargs",
        f"+reward.reward_kwargs={{reward: '{Path(__file__).resolve()}:score', watch: {{dialect: toolrl}}}}",
    ]
    for name, settings in (("stock", stock), ("ours", ours)):
        plan = plan_run("toolrl/quickstart", [*shared, *settings], output=folder / name, resume=False, force=True)
        run, _ = execute(plan, Console())
        if run.attempt.state != "finished":
            raise SystemExit(f"{name}: {run.attempt.state}; see {run.file('train.log')}")
        found[name] = read(folder / name)[1:]
    for what, keys in (("a step", ["timing_s/step"]), ("without waiting", ["timing_s/step", "timing_s/gen"])):
        seconds = {
            name: median(data[keys[0]] - sum(data[key] for key in keys[1:]) for _, data in found[name])
            for name in found
        }
        ratio = seconds["ours"] / seconds["stock"]
        print(f"{what}: stock {seconds['stock']:.2f} s, ours {seconds['ours']:.2f} s, {ratio:.3f}x")
    for name, records in found.items():
        keys = {frozenset(data) for _, data in records}
        memory = [data["actor/perf/cpu_memory_used_gb"] for _, data in records]
        grown = f"memory {memory[0]:.2f} to {memory[-1]:.2f} GB"
        print(f"{name}: {len(keys)} set(s) of log keys over {len(records)} steps; {grown}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder for two real runs")
    parser.add_argument("--model")
    parser.add_argument("--train")
    parser.add_argument("--val")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    if chosen.runs:
        runs(chosen.runs, chosen.model, chosen.train, chosen.val, chosen.steps, chosen.overrides)
    else:
        parts()
