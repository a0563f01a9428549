"""Fuzz the rewards: `python tests/fuzz_rewards.py --count 1000000` (also `make fuzz`).

Right responses in every dialect are mutated (cut, doubled, spliced, salted with tags, brackets, escapes and odd
characters) and scored under many configurations. Every score must be finite, lie inside the bounds of its
configuration, be the sum of its components, and keep the component keys; nothing may raise. The seed decides
everything.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import DIALECTS, write_response
from verl_toolrl.rewards import RewardFunction, make_reward
from verl_toolrl.trajectory import ToolCall

TRUTHS = [
    [ToolCall("get_weather", {"city": "Paris", "days": 1, "metric": True})],
    [ToolCall("search", {"q": "a", "n": 1}), ToolCall("search", {"q": "b", "n": 2}), ToolCall("ping", {})],
    [ToolCall("note", {"text": 'naïve </tool_call>\n"', "tags": ["a", {"x": None}], "at": {"lat": 1.5}})],
    [],
]
SALT = [
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<response>",
        "</response>",
        "```json\n",
        "```",
        "\n",
        "\r\n",
    ),
    *("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<function=f>", "<parameter=x>", "</parameter>", "</function>"),
    *("\nAction: f\nAction Input: ", "\nObservation: ", "Final Answer:", '{"name": "ping", "parameters": {}}'),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\\",
        "\\u",
        "\\ud800",
        ",",
        ":",
        "null",
        "true",
        "NaN",
        "-",
        "1e999",
        "9" * 30,
        "0.1",
    ),
    *(
        "\x00",
        "\u2028",
        "\ud800",
        "é",
        "👩‍💻",
        "\u202e",
        " " * 8,
        "[" * 300,
        '{"a":' * 300,
        "<tool_call>" * 40,
        "\\" * 33,
    ),
]


class Target(NamedTuple):
    """A configured reward with the bounds of its components."""

    name: str
    reward: RewardFunction
    step: int
    bounds: dict[str, tuple[float, float]]


def targets(rng: random.Random, count: int = 60) -> list[Target]:
    """Configurations of every mode: all dialects of robust, and random combinations of switches and steps."""
    found = [Target(f"robust {dialect}", make_reward("toolrl", dialect=dialect), 1, _robust()) for dialect in DIALECTS]
    found.append(Target("tool_n1", make_reward("tool_n1"), 1, {"correctness": (0, 1)}))
    switches = ["equal_max", "two_stage", "dynamic_scale", "length", "finegrained", "intermediate", "coarse"]
    for _ in range(count):
        step = rng.choice([0, 1, 29, 30, 75, 104, 150, 299])
        options = {name: True for name in switches if rng.random() < 0.3}
        if options.get("length") and rng.random() < 0.5:
            options["dynamic_length"] = True
        reward: Any = make_reward("toolrl", mode="released", **options)
        low, high, correct_low, correct_high = reward._ranges(step)
        bounds = {"format": (low, high), "correctness": (correct_low, correct_high), "length": (0.0, 1.0)}
        found.append(Target(f"released {options} at {step}", reward, step, bounds))
    for pairs, scale, granularity in itertools.product(
        ("same_name", "any"), ("original", "dynamic"), ("original", "finegrained", "intermediate", "coarse")
    ):
        if pairs == "any" and granularity == "coarse":
            continue
        reward = make_reward(
            "toolrl", mode="paper", pairs=pairs, scale=scale, granularity=granularity, length="dynamic"
        )
        low, high, correct_low, correct_high = reward._ranges(7, 10)
        bounds = {"format": (low, high), "correctness": (correct_low, correct_high), "length": (0.0, 1.0)}
        found.append(Target(f"paper {pairs} {scale} {granularity}", reward, 7, bounds))
    return found


def _robust() -> dict[str, tuple[float, float]]:
    return {"format": (0.0, 1.0), "correctness": (-3.0, 3.0), "length": (0.0, 0.0)}


def seeds() -> Iterator[tuple[str, str]]:
    """Right responses in every dialect, with their ground truths in ToolRL's form."""
    for calls in TRUTHS:
        truth = write_response(calls, thought="I think.", response=None if calls else "Done.")
        for dialect in DIALECTS:
            try:
                yield write_response(calls, dialect, thought="I think.", response=None if calls else "Done."), truth
            except ConfigError:
                continue  # a dialect that cannot express this row


def mutate(rng: random.Random, text: str, others: list[str]) -> str:
    """Change a text in one to six places."""
    for _ in range(rng.randint(1, 6)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.randint(0, 20))
        kind = rng.random()
        if kind < 0.35:
            text = text[:start] + rng.choice(SALT) + text[start:]
        elif kind < 0.55:
            text = text[:start] + text[end:]
        elif kind < 0.65:
            text = text[:end] + text[start:]
        elif kind < 0.75:
            text = text[:start]
        elif kind < 0.85:
            other = rng.choice(others)
            text = text[:start] + other[rng.randint(0, len(other)) :]
        elif kind < 0.95:
            text = (
                text[:start] + chr(rng.choice([0, 9, 34, 39, 60, 92, 123, 233, 0x202E, 0xD800, 0x1F600])) + text[end:]
            )
        else:
            text = text[:start] + text[start:end] * rng.randint(2, 12) + text[end:]
    return text


def check(target: Target, response: str, truth: str) -> str | None:
    """Score a response; say what is wrong with the result, or None."""
    try:
        result = target.reward(response=response, ground_truth=truth, step=target.step, total_steps=10)
    except Exception as err:  # noqa: BLE001 - any exception is what this looks for
        return f"{type(err).__name__}: {err}"
    if list(result.components) != list(target.bounds):
        return f"components {list(result.components)}"
    for name, value in result.components.items():
        low, high = sorted(target.bounds[name])
        if not math.isfinite(value) or not low - 1e-9 <= value <= high + 1e-9:
            # A ground truth without calls earns 0 in released and paper, whatever the range.
            if not (name == "correctness" and value == 0.0):
                return f"{name} {value} outside [{low}, {high}]"
    total = math.fsum(result.components.values())
    return None if math.isclose(result.score, total, abs_tol=1e-9) else f"score {result.score} is not the sum {total}"


def fuzz(count: int, seed: int, progress: bool = False) -> list[tuple[str, str, str]]:
    """Score `count` mutated responses; return (configuration, problem, response) of every failure."""
    rng = random.Random(seed)
    configured, rows = targets(rng), list(seeds())
    texts = [response for response, _ in rows]
    main = [configured[0], Target("released", make_reward("toolrl", mode="released"), 1, _robust())]
    failures = []
    for number in range(count):
        response, truth = rng.choice(rows)
        response = mutate(rng, response, texts)
        for target in (*main, rng.choice(configured)):
            problem = check(target, response, truth)
            if problem:
                failures.append((target.name, problem, response))
        if progress and (number + 1) % 100_000 == 0:
            print(f"{number + 1:,} responses, {len(failures)} failures", file=sys.stderr)
    return failures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    failures = fuzz(arguments.count, arguments.seed, progress=True)
    for name, problem, response in sorted(failures, key=lambda failure: len(failure[2]))[:10]:
        print(f"{name}: {problem}\n    {response!r}")
    seconds = time.perf_counter() - start
    print(f"{arguments.count:,} responses, each under three configurations, {len(failures)} failures, {seconds:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
