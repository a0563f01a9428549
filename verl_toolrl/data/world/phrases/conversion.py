"""Units and money."""

from __future__ import annotations

from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases
from verl_toolrl.data.world.pools import SPEAKERS

__all__ = ["CURRENCY", "UNITS"]

_UNITS = (
    ("m", "km", "cm", "mile", "yard", "foot", "inch"),
    ("kg", "g", "pound", "ounce", "tonne"),
    ("l", "ml", "us_gallon", "us_pint"),
    ("h", "min", "s", "day", "week"),
    ("km/h", "mph", "knot"),
    ("MB", "GB", "MiB", "GiB"),
    ("celsius", "fahrenheit", "kelvin"),
)
_CURRENCIES = ("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "BRL", "CAD", "AUD")


def _quantity(draw: Random) -> dict[str, Any]:
    source, target = draw.sample(draw.choice(_UNITS), 2)
    return {"value": draw.randint(2, 400), "from_unit": source, "to_unit": target}


def _money(draw: Random) -> dict[str, Any]:
    source, target = draw.sample(_CURRENCIES, 2)
    return {"amount": draw.randint(2, 900), "from_currency": source, "to_currency": target}


def _two_weights(draw: Random) -> tuple[str, dict[str, Any]]:
    a, b = draw.randint(2, 40), draw.randint(2, 40)
    source, target = draw.sample(_UNITS[1], 2)
    text = f"One box weighs {a} {source} and the other {b} {source}. How much do they weigh together in {target}?"
    return text, {"value": a + b, "from_unit": source, "to_unit": target}


def _two_purses(draw: Random) -> tuple[str, dict[str, Any]]:
    arguments, (first, second) = _money(draw), draw.sample(SPEAKERS, 2)
    a, b = draw.randint(2, 60), draw.randint(2, 60)
    source, target = arguments["from_currency"], arguments["to_currency"]
    text = f"{first} has {a} {source} and {second} has {b} {source}. How much is that together in {target}?"
    return text, {**arguments, "amount": a + b}


def _tickets(draw: Random) -> tuple[str, dict[str, Any]]:
    arguments, count, price = _money(draw), draw.randint(2, 9), draw.randint(2, 30)
    source, target = arguments["from_currency"], arguments["to_currency"]
    text = f"A ticket costs {price} {source}. How much do {count} tickets cost in {target}?"
    return text, {**arguments, "amount": count * price}


UNITS = (
    Phrases(
        "convert_unit",
        draw=_quantity,
        wordings=(
            "Convert {value} {from_unit} to {to_unit}.",
            "How much is {value} {from_unit} in {to_unit}?",
            "What do {value} {from_unit} make in {to_unit}?",
            "I have {value} {from_unit} and want it in {to_unit}.",
            "Give me {to_unit} for {value} {from_unit}.",
        ),
        lookups=(
            Lookup("value", "{who} measured {value} {from_unit}", "What is the result of {who} in {to_unit}?"),
            Lookup("to_unit", "{who} counts in {value}", "Convert {value} {from_unit} to the unit of {who}."),
        ),
        computed=(_two_weights,),
    ),
)

CURRENCY = (
    Phrases(
        "convert_currency",
        draw=_money,
        wordings=(
            "How much is {amount} {from_currency} in {to_currency}?",
            "Convert {amount} {from_currency} to {to_currency}.",
            "I want to change {amount} {from_currency} into {to_currency}. What do I get?",
            "What are {amount} {from_currency} worth in {to_currency}?",
            "Tell me in {to_currency} what {amount} {from_currency} are.",
        ),
        lookups=(
            Lookup("amount", "{who} has {value} {from_currency}", "How much is the money of {who} in {to_currency}?"),
            Lookup("to_currency", "{who} pays in {value}", "Convert {amount} {from_currency} to the money of {who}."),
        ),
        computed=(_two_purses, _tickets),
    ),
)
