"""Calendar arithmetic in the Gregorian calendar. No clock: "today" is whatever the task says it is."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from typing import Literal

from verl_toolrl.toolbox import ModelMistake, tool

_LIMITS = {"timeout": 1.0, "output_tokens": 128}


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as err:
        raise ModelMistake(f"{text[:40]!r} is no date; write it as YYYY-MM-DD, for example 2026-03-31.") from err


@tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
def add_to_date(start: str, amount: int, unit: Literal["days", "weeks", "months", "years"]) -> str:
    """Add a span of time to a date, or subtract one.

    Args:
        start: The date, YYYY-MM-DD.
        amount: How many units; negative to go back.
        unit: Unit of the span. Months and years keep the day, or take the last day of a shorter month.
    """
    day = _date(start)
    try:
        if unit in ("days", "weeks"):
            return (day + timedelta(days=amount * (7 if unit == "weeks" else 1))).isoformat()
        months = day.year * 12 + day.month - 1 + amount * (12 if unit == "years" else 1)
        year, month = months // 12, months % 12 + 1
        return date(year, month, min(day.day, calendar.monthrange(year, month)[1])).isoformat()
    except (OverflowError, ValueError) as err:
        raise ModelMistake("The result lies outside the years 1 to 9999.") from err


@tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
def days_between(start: str, end: str) -> int:
    """Count the days from one date to another; negative if the second is earlier.

    Args:
        start: First date, YYYY-MM-DD.
        end: Second date, YYYY-MM-DD.
    """
    return (_date(end) - _date(start)).days


@tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
def day_of_week(day: str) -> str:
    """Say which day of the week a date is.

    Args:
        day: The date, YYYY-MM-DD.
    """
    return calendar.day_name[_date(day).weekday()]
