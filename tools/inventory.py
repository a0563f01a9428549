"""A shop's stock: one per trajectory, changed by the calls, compared at the end by a reward.

Initial state: `{"stock": {"apple": {"quantity": 12, "price": 0.5}, ...}}`; without one the stock below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from verl_toolrl.errors import nearest
from verl_toolrl.toolbox import StatefulTool, ToolError, tool

_DEFAULT = {
    "apple": {"quantity": 40, "price": 0.5},
    "bread": {"quantity": 12, "price": 2.8},
    "coffee": {"quantity": 9, "price": 7.5},
    "lamp": {"quantity": 3, "price": 24.0},
    "notebook": {"quantity": 25, "price": 3.2},
    "umbrella": {"quantity": 6, "price": 15.0},
}
_LIMITS = {"timeout": 1.0, "output_tokens": 1024}
Quantity = Annotated[int, Field(ge=1, le=1_000_000)]


class Inventory(StatefulTool):
    """The stock and the tools on it."""

    def __init__(self, stock: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        source = _DEFAULT if stock is None else stock
        self._stock = {
            name: {"quantity": int(item["quantity"]), "price": float(item["price"])} for name, item in source.items()
        }

    def snapshot(self) -> dict[str, Any]:
        """Return the stock by item."""
        return self._stock

    def _item(self, name: str) -> dict[str, Any]:
        if name not in self._stock:
            raise ToolError(f"There is no item {name[:60]!r}{nearest(name, self._stock) or '.'}")
        return self._stock[name]

    @tool(domain="shop", deterministic=True, isolation="inline", limits=_LIMITS)
    def list_items(self) -> list[str]:
        """List the names of all items in the shop."""
        return sorted(self._stock)

    @tool(domain="shop", deterministic=True, isolation="inline", limits=_LIMITS)
    def check_stock(self, item: str) -> dict[str, Any]:
        """Look up how many pieces of an item are in stock and what one costs.

        Args:
            item: Name of the item.
        """
        return {"item": item, **self._item(item)}

    @tool(domain="shop", deterministic=True, isolation="inline", limits=_LIMITS)
    def restock(self, item: str, quantity: Quantity) -> dict[str, Any]:
        """Add pieces of an item to the stock.

        Args:
            item: Name of the item.
            quantity: How many pieces arrive.
        """
        self._item(item)["quantity"] += quantity
        return {"item": item, "quantity": self._stock[item]["quantity"]}

    @tool(domain="shop", deterministic=True, isolation="inline", limits=_LIMITS)
    def sell(self, item: str, quantity: Quantity) -> dict[str, Any]:
        """Sell pieces of an item and return the total price and what is left.

        Args:
            item: Name of the item.
            quantity: How many pieces are sold.
        """
        entry = self._item(item)
        if quantity > entry["quantity"]:
            raise ToolError(f"Only {entry['quantity']} pieces of {item} are in stock.")
        entry["quantity"] -= quantity
        return {"item": item, "total": round(entry["price"] * quantity, 2), "quantity": entry["quantity"]}
