"""Arithmetic and statistics."""

from __future__ import annotations

from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases
from verl_toolrl.data.world.pools import SPEAKERS

__all__ = ["CALCULATOR", "STATS"]

_MEASURES = ("count", "sum", "mean", "median", "mode", "min", "max", "range", "stdev")


def _expression(draw: Random) -> dict[str, Any]:
    a, b, c = (draw.randint(2, 99) for _ in range(3))
    forms = (f"{a} * {b}", f"{a} * ({b} + {c})", f"({a} + {b}) / {c}", f"{a} ** 2 - {b}", f"{a * b} / {b} + {c}")
    return {"expression": draw.choice(forms)}


def _numbers(draw: Random) -> list[int]:
    return [draw.randint(1, 90) for _ in range(draw.randint(3, 5))]


def _summed_scores(draw: Random) -> tuple[str, dict[str, Any]]:
    names = draw.sample(SPEAKERS, 3)
    numbers = [draw.randint(1, 90) for _ in names]
    measure = draw.choice(("sum", "mean", "median", "min", "max"))
    scores = ", ".join(f"{name} has {number} points" for name, number in zip(names, numbers, strict=True))
    return f"{scores}. What is the {measure} of their points?", {"numbers": numbers, "measure": measure}


CALCULATOR = (
    Phrases(
        "calculate",
        draw=_expression,
        wordings=(
            "Calculate {expression}.",
            "What is {expression}?",
            "Work out {expression} for me.",
            "I need the result of {expression}.",
            "How much does {expression} come to?",
        ),
        lookups=(
            Lookup("expression", "{who} got the exercise {value}", "Calculate the exercise of {who}."),
            Lookup("expression", "{who} has to solve {value}", "What is the result for {who}?"),
        ),
    ),
)

STATS = (
    Phrases(
        "summarize_numbers",
        draw=lambda draw: {"numbers": _numbers(draw), "measure": draw.choice(_MEASURES)},
        wordings=(
            "What is the {measure} of the numbers {numbers}?",
            "Compute the {measure} of {numbers}.",
            "I have the numbers {numbers}. What is their {measure}?",
            "For the numbers {numbers}, tell me the {measure}.",
            "Here is a list: {numbers}. I need its {measure}.",
        ),
        lookups=(
            Lookup("numbers", "{who} measured {value}", "What is the {measure} of the numbers of {who}?"),
            Lookup("measure", "{who} asks for the {value}", "Compute what {who} asks for, of the numbers {numbers}."),
        ),
        computed=(_summed_scores,),
    ),
)
