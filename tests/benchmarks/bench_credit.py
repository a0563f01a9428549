"""Credit against verl's own `gae`, and rule rewards, in one run: `python tests/benchmarks/bench_credit.py`.

1,024 trajectories of up to 20 steps in 8,192 tokens. Each line is the best of several rounds that alternate with
verl's `compute_gae_advantage_return` on the same tensors, so that both meet the same machine. "placement +" includes
building `Steps` (which checks the spans) and `place_step_rewards`, which verl's side does not do. The target is a ratio
of at most 1.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from verl_toolrl.credit import (
    Advantages,
    Steps,
    gigpo_advantages,
    mix_with_outcome,
    mt_grpo_advantages,
    outcome_advantages,
    place_step_rewards,
    return_to_go_advantages,
    step_gae,
    step_n_step,
    token_gae,
    whiten,
)
from verl_toolrl.rewards.steptool import StepToolReward
from verl_toolrl.trajectory import Outcome, Step, ToolCall, ToolResult, Trajectory


def batch(rows: int, max_steps: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Trajectories of 1 to `max_steps` steps that fill the response about as real ones do, tool output in between."""
    chance = random.Random(seed)
    spans = torch.full((rows, max_steps, 2), -1)
    mask = torch.zeros(rows, length)
    for row in range(rows):
        count = chance.randint(1, max_steps)
        cuts = sorted(chance.sample(range(1, length), 2 * count))
        for step, (start, end) in enumerate(zip(cuts[::2], cuts[1::2])):
            spans[row, step] = torch.tensor([start, end])
            mask[row, start:end] = 1
    generator = torch.Generator().manual_seed(seed)
    return {
        "spans": spans,
        "mask": mask,
        "rewards": torch.rand(rows, max_steps, generator=generator) * (spans[..., 0] >= 0),
        "values": torch.randn(rows, length, generator=generator),
        "group": torch.arange(rows) // 8,
        "states": torch.randint(0, 50, (rows, max_steps), generator=generator),
    }


def credit_lines(data: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Name -> what is measured: placement and one estimator."""

    def run(estimate: Callable[[torch.Tensor, Steps], Advantages]) -> Callable[[], Any]:
        def measured() -> Any:
            steps = Steps(data["spans"], data["mask"])
            return estimate(place_step_rewards(data["rewards"], steps), steps)

        return measured

    rewards, values, group = data["rewards"], data["values"], data["group"]

    def whitened_token_gae(placed: torch.Tensor, steps: Steps) -> Advantages:
        found = token_gae(placed, values, steps.response_mask, gamma=0.99, lam=0.95)
        return Advantages(whiten(found.advantages, steps.response_mask) * steps.response_mask, found.returns)

    def mixture(placed: torch.Tensor, steps: Steps) -> Advantages:
        step = return_to_go_advantages(rewards, steps, group)
        return mix_with_outcome(step, outcome_advantages(rewards, steps, group), outcome_weight=0.5)

    return {
        "placement + token_gae, whitened": run(whitened_token_gae),
        "placement + step_gae": run(lambda placed, steps: step_gae(rewards, values, steps, gamma=0.99, lam=0.95)),
        "placement + step_n_step": run(lambda placed, steps: step_n_step(rewards, values, steps, gamma=0.99)),
        "placement + return_to_go": run(lambda placed, steps: return_to_go_advantages(rewards, steps, group)),
        "placement + mt_grpo": run(lambda placed, steps: mt_grpo_advantages(rewards, steps, group)),
        "placement + gigpo": run(lambda placed, steps: gigpo_advantages(rewards, steps, group, data["states"])),
        "placement + mixture": run(mixture),
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_credit(console: Console, rows: int, max_steps: int, length: int, rounds: int) -> None:
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    data = batch(rows, max_steps, length)
    placed = place_step_rewards(data["rewards"], Steps(data["spans"], data["mask"]))

    def verl_gae() -> Any:
        return compute_gae_advantage_return(placed, data["values"], data["mask"], 0.99, 0.95)

    table = Table(title=f"{rows} trajectories, up to {max_steps} steps, {length} tokens", title_justify="left")
    for heading in ("", "ours, ms", "verl gae, ms", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, call in credit_lines(data).items():
        call(), verl_gae()
        pairs = [(seconds(call), seconds(verl_gae)) for _ in range(rounds)]
        ours, theirs = min(a for a, _ in pairs), min(b for _, b in pairs)
        table.add_row(name, f"{ours * 1e3:.0f}", f"{theirs * 1e3:.0f}", f"{ours / theirs:.2f}")
    console.print(table)


WORDS = (
    "the flight from Paris leaves at nine and arrives before noon with one stop in Lyon where passengers change trains "
    "weather remains sunny although clouds gather over the northern hills while prices for hotels rise during summer"
).split()


def long_trajectory(kind: str, steps: int = 20, length: int = 1000, seed: int = 0) -> Trajectory:
    """19 calls with answers of 1,000 characters and an answer of the same length that quotes from them."""
    chance = random.Random(seed)

    def text() -> str:
        if kind == "letters":
            return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=length))
        words = [*chance.choices(WORDS, k=length // 4), *(f"{chance.randint(100, 9999)}" for _ in range(20))]
        chance.shuffle(words)
        return " ".join(words)[:length]

    answers = [text() for _ in range(steps - 1)]
    made = [
        Step(
            f"call {n}",
            (ToolCall("search", {"query": f"{WORDS[n]} {n}"}),),
            (ToolResult(Outcome.OK, json.dumps({"error": "", "response": answer})),),
        )
        for n, answer in enumerate(answers)
    ]
    final = " ".join(answer[:60] for answer in answers)[:length].ljust(length, "x")
    return Trajectory((*made, Step(final)), messages=({"role": "user", "content": "?"},), extra={"ground_truth": "x"})


def bench_rules(console: Console, rounds: int) -> None:
    table = Table(title="rule rewards of one trajectory: 20 steps, 1,000-character answers", title_justify="left")
    for heading in ("rule", "text", "ms", "target"):
        table.add_column(heading, justify="left" if heading in ("rule", "text") else "right")
    for mode, options in (("robust", {}), ("paper", {}), ("released", {}), ("paper", {"contribution": "subsequence"})):
        reward = StepToolReward(mode=mode, **options)  # type: ignore[arg-type]
        for kind in ("words", "letters"):
            trajectory = long_trajectory(kind)
            reward(trajectory)
            best = min(seconds(lambda r=reward, t=trajectory: r(t)) for _ in range(10 * rounds))
            name = f"{mode} {options.get('contribution', '')}".strip()
            table.add_row(name, kind, f"{best * 1e3:.2f}", "< 2")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    console = Console()
    bench_rules(console, chosen.rounds)
    bench_credit(console, chosen.rows, chosen.steps, chosen.tokens, chosen.rounds)


if __name__ == "__main__":
    main()
