"""Currency conversion over a fixed table. The rates are invented round numbers, so that answers never change."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import Field

from verl_toolrl.toolbox import ModelMistake, tool

# Units of each currency for one US dollar; not market rates.
RATES: dict[str, Decimal] = {
    "USD": Decimal(1),
    "EUR": Decimal("0.90"),
    "GBP": Decimal("0.80"),
    "CHF": Decimal("0.85"),
    "JPY": Decimal(150),
    "CNY": Decimal("7.20"),
    "INR": Decimal(84),
    "BRL": Decimal("5.50"),
    "CAD": Decimal("1.40"),
    "AUD": Decimal("1.55"),
}

Currency = Literal["USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "BRL", "CAD", "AUD"]


@tool(domain="conversion", deterministic=True, isolation="inline", limits={"timeout": 1.0, "output_tokens": 128})
def convert_currency(
    amount: Annotated[float, Field(ge=0, le=1e12)], from_currency: Currency, to_currency: Currency
) -> float:
    """Convert an amount of money at the bank's fixed rates, rounded to two decimals.

    Args:
        amount: The amount, zero or more.
        from_currency: Currency of the amount.
        to_currency: Currency wanted.
    """
    try:
        exact = Decimal(str(amount)) / RATES[from_currency] * RATES[to_currency]
        return float(exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_EVEN))
    except InvalidOperation as err:
        raise ModelMistake("The amount cannot be converted.") from err
