"""The shop's stock."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases
from verl_toolrl.data.world.pools import GOODS, SPEAKERS

__all__ = ["INVENTORY"]

_ENOUGH = 500
"""Pieces in stock of what a question is about; more than any question sells."""


def _item(draw: Random) -> dict[str, Any]:
    return {"item": draw.choice(GOODS)}


def _some_pieces(draw: Random) -> dict[str, Any]:
    return {"item": draw.choice(GOODS), "quantity": draw.randint(2, 60)}


def _stock(call: Mapping[str, Any]) -> dict[str, Any]:
    price = 1.5 + 0.5 * len(call["item"])
    return {"stock": {call["item"]: {"quantity": _ENOUGH, "price": price}}}


def _boxes(draw: Random) -> tuple[str, dict[str, Any]]:
    item, boxes, pieces = draw.choice(GOODS), draw.randint(2, 9), draw.randint(2, 12)
    text = f"{boxes} boxes with {pieces} pieces of {item} each have arrived. Add them all to the stock."
    return text, {"item": item, "quantity": boxes * pieces}


def _two_deliveries(draw: Random) -> tuple[str, dict[str, Any]]:
    item, a, b = draw.choice(GOODS), draw.randint(2, 40), draw.randint(2, 40)
    text = f"{a} pieces of {item} arrived in the morning and {b} at noon. Add them to the stock, as one entry."
    return text, {"item": item, "quantity": a + b}


def _two_buyers(draw: Random) -> tuple[str, dict[str, Any]]:
    item, (first, second) = draw.choice(GOODS), draw.sample(SPEAKERS, 2)
    a, b = draw.randint(2, 30), draw.randint(2, 30)
    text = f"{first} takes {a} pieces of {item} and {second} takes {b}. Enter it as one sale."
    return text, {"item": item, "quantity": a + b}


INVENTORY = (
    Phrases(
        "list_items",
        draw=lambda draw: {},
        wordings=(
            "Which items does the shop have?",
            "List everything that the shop sells.",
            "Name all items of the shop.",
            "What can one buy in the shop? Give me all names.",
        ),
        state=lambda call: {"stock": {"apple": {"quantity": 4, "price": 0.5}}},
    ),
    Phrases(
        "check_stock",
        draw=_item,
        wordings=(
            "How many pieces of {item} are in stock?",
            "Look up the stock and the price of {item}.",
            "What does one {item} cost in the shop, and how many are left?",
            "Do we still have {item} in the shop? Check it.",
        ),
        lookups=(Lookup("item", "{who} asks for {value}", "Check the stock of what {who} asks for."),),
        state=_stock,
    ),
    Phrases(
        "restock",
        draw=_some_pieces,
        wordings=(
            "{quantity} pieces of {item} have arrived. Add them to the stock.",
            "Add {quantity} pieces of {item} to the stock.",
            "Restock {item} with {quantity} pieces.",
            "The van brought {quantity} pieces of {item}. Enter them into the stock.",
        ),
        lookups=(
            Lookup(
                "quantity", "{who} brings {value} pieces", "Add to the stock as many pieces of {item} as {who} brings."
            ),
            Lookup("item", "{who} delivers {value}", "Add {quantity} pieces of what {who} delivers to the stock."),
        ),
        computed=(_boxes, _two_deliveries),
        state=_stock,
    ),
    Phrases(
        "sell",
        draw=_some_pieces,
        wordings=(
            "Sell {quantity} pieces of {item}.",
            "A customer buys {quantity} pieces of {item}. Enter the sale.",
            "Somebody takes {quantity} pieces of {item} and pays. Sell them.",
            "Enter a sale of {quantity} pieces of {item}.",
        ),
        lookups=(
            Lookup("quantity", "{who} wants {value} pieces", "Sell as many pieces of {item} as {who} wants."),
            Lookup("item", "{who} likes {value}", "Sell {quantity} pieces of what {who} likes."),
        ),
        computed=(_two_buyers,),
        state=_stock,
    ),
)
