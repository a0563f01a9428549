"""Dates and appointments."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases
from verl_toolrl.data.world.pools import SPEAKERS, TITLES, some_date, some_time

__all__ = ["AGENDA", "DATES"]

_SPANS = {"days": 90, "weeks": 12, "months": 18, "years": 9}


def _shift(draw: Random) -> dict[str, Any]:
    unit = draw.choice(tuple(_SPANS))
    return {"start": some_date(draw), "amount": draw.randint(2, _SPANS[unit]), "unit": unit}


def _back(draw: Random) -> tuple[str, dict[str, Any]]:
    arguments = _shift(draw)
    text = "Which date was {amount} {unit} before {start}?".format(**arguments)
    return text, {**arguments, "amount": -arguments["amount"]}


def _delivery(draw: Random) -> tuple[str, dict[str, Any]]:
    day, first, second = some_date(draw), draw.randint(2, 20), draw.randint(2, 20)
    text = f"Building begins on {day} and takes {first} days, painting {second} more. Which date is it then?"
    return text, {"start": day, "amount": first + second, "unit": "days"}


def _days_between(draw: Random) -> dict[str, Any]:
    start = some_date(draw)
    return {"start": start, "end": (date.fromisoformat(start) + timedelta(days=draw.randint(2, 400))).isoformat()}


def _event(draw: Random) -> dict[str, Any]:
    return {
        "day": some_date(draw),
        "start": some_time(draw, 8, 14),
        "end": some_time(draw, 15, 20),
        "title": draw.choice(TITLES),
    }


def _event_by_hours(draw: Random) -> tuple[str, dict[str, Any]]:
    arguments, hours = _event(draw), draw.randint(2, 6)
    hour, minute = arguments["start"].split(":")
    text = "Enter {title} on {day}. It starts at {start} and takes {hours} hours.".format(**arguments, hours=hours)
    return text, {**arguments, "end": f"{int(hour) + hours:02d}:{minute}"}


def _next_day(draw: Random) -> tuple[str, dict[str, Any]]:
    day = date.fromisoformat(some_date(draw))
    text = f"Today is {day.isoformat()}. Which appointments do I have tomorrow?"
    return text, {"day": (day + timedelta(days=1)).isoformat()}


def _move(draw: Random) -> tuple[str, dict[str, Any]]:
    first, second = draw.sample(SPEAKERS, 2)
    day = date.fromisoformat(some_date(draw)).replace(day=draw.randint(3, 26))
    text = f"{first} moves on {day.isoformat()}, {second} one day later. On which weekday does {second} move?"
    return text, {"day": (day + timedelta(days=1)).isoformat()}


DATES = (
    Phrases(
        "add_to_date",
        draw=_shift,
        wordings=(
            "Which date is {amount} {unit} after {start}?",
            "Start at {start} and go {amount} {unit} forward. Which date is that?",
            "A parcel left on {start} and takes {amount} {unit}. On which date does it arrive?",
            "Add {amount} {unit} to {start}.",
            "From {start} on, what is the date {amount} {unit} later?",
        ),
        lookups=(
            Lookup("amount", "{who} waits {value} {unit}", "Which date is it when {who} has waited from {start} on?"),
            Lookup("start", "{who} starts on {value}", "Which date is {amount} {unit} after the start of {who}?"),
        ),
        computed=(_back, _delivery),
    ),
    Phrases(
        "days_between",
        draw=_days_between,
        wordings=(
            "How many days are there from {start} to {end}?",
            "Count the days from {start} to {end}.",
            "A trip starts on {start} and ends on {end}. How many days lie between?",
            "It is {start}. How many days are left until {end}?",
            "How long is it from {start} to {end}, in days?",
        ),
        lookups=(Lookup("end", "{who} comes on {value}", "How many days are there from {start} until {who} comes?"),),
    ),
    Phrases(
        "day_of_week",
        draw=lambda draw: {"day": some_date(draw)},
        wordings=(
            "Which day of the week is {day}?",
            "On what weekday does {day} fall?",
            "Is {day} a Monday, a Tuesday or what?",
            "Tell me the weekday of {day}.",
        ),
        lookups=(Lookup("day", "{who} marries on {value}", "On which weekday does {who} marry?"),),
        computed=(_move,),
    ),
)

AGENDA = (
    Phrases(
        "list_events",
        draw=lambda draw: {"day": some_date(draw)},
        wordings=(
            "Which appointments do I have on {day}?",
            "Show me my agenda for {day}.",
            "What is planned for {day}?",
            "Read me my appointments of {day}.",
        ),
        lookups=(Lookup("day", "{who} comes on {value}", "Which appointments do I have on the day when {who} comes?"),),
        computed=(_next_day,),
    ),
    Phrases(
        "add_event",
        draw=_event,
        wordings=(
            "Enter {title} on {day} from {start} to {end}.",
            "Put {title} into my agenda: {day}, {start} to {end}.",
            "On {day} I have {title}, from {start} until {end}. Please note it.",
            "Block {start} to {end} on {day} for {title}.",
        ),
        lookups=(
            Lookup("title", "{who} needs time for {value}", "Enter what {who} needs on {day} from {start} to {end}."),
            Lookup("day", "{who} is free on {value}", "Enter {title} from {start} to {end} on the day of {who}."),
        ),
        computed=(_event_by_hours,),
    ),
    Phrases(
        "cancel_event",
        draw=lambda draw: {"day": some_date(draw), "start": some_time(draw)},
        wordings=(
            "Cancel my appointment on {day} at {start}.",
            "I cannot come on {day} at {start}. Take it out of my agenda.",
            "The appointment of {day}, {start}, does not take place. Cancel it.",
            "Please drop what I have at {start} on {day}.",
        ),
        lookups=(Lookup("start", "{who} comes at {value}", "Cancel the appointment with {who} on {day}."),),
        state=lambda call: {
            "events": [{"day": call["day"], "start": call["start"], "end": f"{call['start'][:2]}:59", "title": "visit"}]
        },
    ),
)
