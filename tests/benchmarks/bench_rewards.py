"""Speed of the rewards on one core: `python tests/benchmarks/bench_rewards.py` (also part of `make bench`).

Peer: `verl.utils.reward_score.rlla`, verl's own port of the same scorer, in the same process on the same responses.
Rows are ToolRL's test split where ../shared is beside the checkout, else rows made here. Responses to each row: the
ground truth, the ground truth with values changed, and that of another row. Rounds of the contestants alternate, and
the best round counts, so that load on the machine hits all alike. What a round prints (the peer prints samples) goes to
/dev/null.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verl_toolrl.formats import write_response
from verl_toolrl.rewards import make_reward
from verl_toolrl.trajectory import ToolCall

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "rlla_test.parquet"
ROUNDS = 40


def rows() -> list[tuple[str, str]]:
    """Pairs of response and ground truth."""
    if DATA.is_file():
        import pyarrow.parquet

        truths = [row["reward_model"]["ground_truth"] for row in pyarrow.parquet.read_table(DATA).to_pylist()]
    else:
        rng = random.Random(0)
        truths = [
            write_response([call(rng) for _ in range(rng.randint(1, 3))], thought="I should call a tool.")
            for _ in range(80)
        ]
    pairs = []
    for index, truth in enumerate(truths):
        changed = truth.replace("1", "2").replace('a"', 'b"', 2)
        pairs += [(truth, truth), (changed, truth), (truths[index - 1], truth)]
    return pairs


def call(rng: random.Random, name: str | None = None) -> ToolCall:
    """A call with three arguments."""
    return ToolCall(
        name or rng.choice(["get_weather", "search", "ping"]), {k: rng.randint(0, 3) for k in ("x", "y", "z")}
    )


def best(functions: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the seconds of the best round of each function; rounds alternate."""
    seconds = dict.fromkeys(functions, float("inf"))
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        for _ in range(rounds):
            for name, function in functions.items():
                start = time.process_time()
                function()
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def throughput() -> Table:
    """Scores a second against the peer."""
    from verl.utils.reward_score import rlla

    pairs = rows()
    wrapped = [(f"<|im_start|>assistant\n{response}<|im_end|>", truth) for response, truth in pairs]
    extra = {"experiment_name": "qwen"}
    contestants: dict[str, Callable[[], Any]] = {
        "verl rlla": lambda: [rlla.compute_score("rlla", text, truth, extra) for text, truth in wrapped]
    }
    for name, options in {
        "released": {"mode": "released"},
        "paper": {"mode": "paper"},
        "robust": {},
        "robust (hermes)": {"dialect": "hermes"},
    }.items():
        reward = make_reward("toolrl", **options)
        contestants[name] = lambda reward=reward: [reward(response=text, ground_truth=truth) for text, truth in pairs]
    seconds = best(contestants)
    table = Table(title=f"{len(pairs)} responses, one core, best of {ROUNDS} alternating rounds")
    for column in ("scorer", "µs a score", "scores a second", "against verl rlla"):
        table.add_column(column, justify="right" if column != "scorer" else "left")
    for name, value in seconds.items():
        ratio = seconds["verl rlla"] / value
        table.add_row(name, f"{1e6 * value / len(pairs):.1f}", f"{len(pairs) / value:,.0f}", f"{ratio:.2f}x")
    return table


def limits() -> Table:
    """Time of single large responses."""
    rng = random.Random(1)
    truth = [call(rng, "search") for _ in range(32)]
    wrong = [call(rng, "search") for _ in range(32)]
    small = write_response([truth[0]], thought="t")
    opening, closing = "<think> t </think>\n<tool_call>\n", "\n</tool_call>"
    big = ToolCall("search", {"text": 'word "quoted" ' * 70_000})
    responses = {
        "32 by 32 calls of one tool, all different": (
            write_response(wrong, thought="t"),
            write_response(truth, thought="t"),
        ),
        "a call of 1 MB": (write_response([big], thought="t"), small),
        "a thought of 1 MB": (write_response([truth[0]], thought="word " * 200_000), small),
        "1 MB of calls, a line each": (write_response([truth[0]] * 17_000, thought="t"), small),
        "1 MB of opening tags": ("<tool_call>" * 90_000, small),
        "1 MB of broken blocks": ("<tool_call>{'a</tool_call>" * 38_000, small),
        "100,000 brackets deep": (opening + "[" * 100_000 + closing, small),
        "100,000 objects deep, closed": (opening + '{"a":' * 100_000 + "1" + "}" * 100_000 + closing, small),
    }
    table = Table(title="milliseconds for one response")
    modes = ("released", "paper", "robust")
    table.add_column("response")
    for mode in modes:
        table.add_column(mode, justify="right")
    rewards = {mode: make_reward("toolrl", mode=mode) for mode in modes}
    for name, (response, ground_truth) in responses.items():
        seconds = best(
            {
                mode: lambda reward=reward, text=response, truth=ground_truth: reward(response=text, ground_truth=truth)
                for mode, reward in rewards.items()
            },
            rounds=5,
        )
        table.add_row(name, *(f"{1000 * seconds[mode]:.2f}" for mode in modes))
    return table


if __name__ == "__main__":
    console = Console()
    console.print(throughput())
    console.print(limits())
