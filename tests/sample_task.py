"""A task for tests that train: two tools, one call a row, in RLLA's layout; see the fixture `sample_rows`.

Small enough that a model of 135M parameters knows its form after ten supervised steps of four rows and gets better at
its content within a few steps of GRPO. It shows that a set-up trains; it is no benchmark.
"""

from __future__ import annotations

import json
import random

__all__ = ["INSTRUCTION", "TOOLS", "sample_rows"]

INSTRUCTION = """You are a helpful assistant that solves tasks with tool calls.

**Available Tools**
1. Name: get_weather
Description: Weather of a city
Parameters: {"city": {"description": "Name of the city", "type": "string"}, \
"days": {"description": "How many days ahead", "type": "integer"}}
2. Name: convert_currency
Description: Convert an amount of money
Parameters: {"amount": {"description": "How much", "type": "number"}, \
"source": {"description": "Code, such as EUR", "type": "string"}, \
"target": {"description": "Code", "type": "string"}}

**Output Format**
<think> Your thoughts </think>
<tool_call>
{"name": "Tool name", "parameters": {"Parameter name": "Parameter content"}}
</tool_call>"""
"""System message of every row: 190 tokens of SmolLM2."""

TOOLS = '''
from verl_toolrl.errors import InfrastructureError
from verl_toolrl.toolbox import tool

AWAY = ()


@tool
def get_weather(city: str, days: int) -> dict:
    """Weather of a city.

    Args:
        city: Name of the city.
        days: How many days ahead.
    """
    if city in AWAY:
        raise InfrastructureError("the weather server is away")
    return {"city": city, "sky": "clear", "degrees": 10 + days}


@tool
def convert_currency(amount: float, source: str, target: str) -> dict:
    """Convert an amount of money.

    Args:
        amount: How much.
        source: Code, such as EUR.
        target: Code.
    """
    return {"amount": amount * 2, "currency": target}
'''
"""A module with the tools of the rows; for the cities that `AWAY` names, the weather server does not answer."""

_CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Turin", "Dakar", "Perth", "Leeds", "Busan", "Kyoto")
_CURRENCIES = ("EUR", "USD", "JPY", "CHF", "SEK", "GBP", "CAD", "INR")


def sample_rows(count: int, *, seed: int) -> list[dict[str, str]]:
    """Return rows `{instruction, input, output}`; the same seed gives the same rows.

    Args:
        count: How many.
        seed: Seed of the generator; rows of different seeds may repeat each other.
    """
    generator = random.Random(seed)
    return [_row(generator) for _ in range(count)]


def _row(generator: random.Random) -> dict[str, str]:
    if generator.random() < 0.5:
        city, days = generator.choice(_CITIES), generator.randint(1, 9)
        question, thought = f"How will the weather in {city} be in {days} days?", "The user asks for the weather."
        call = {"name": "get_weather", "parameters": {"city": city, "days": days}}
    else:
        source, target = generator.sample(_CURRENCIES, 2)
        amount = generator.randint(2, 900)
        question, thought = f"How much is {amount} {source} in {target}?", "The user wants to convert money."
        call = {"name": "convert_currency", "parameters": {"amount": amount, "source": source, "target": target}}
    return {
        "instruction": INSTRUCTION,
        "input": f"**Dialogue Records History**\n<user> {question} </user>",
        "output": f"<think> {thought} </think>\n<tool_call>\n{json.dumps(call)}\n</tool_call>",
    }
