"""An agenda of appointments: one per trajectory. No clock.

Initial state: `{"events": [{"day": "2026-05-04", "start": "09:00", "end": "10:00", "title": ...}, ...]}`.
Empty without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated

from pydantic import Field

from verl_toolrl.toolbox import ModelMistake, StatefulTool, ToolError, tool

_LIMITS = {"timeout": 1.0, "output_tokens": 1024}
Time = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as err:
        raise ModelMistake(f"{text[:40]!r} is no date; write it as YYYY-MM-DD.") from err


class Agenda(StatefulTool):
    """The appointments and the tools on them."""

    def __init__(self, events: Sequence[Mapping[str, str]] = ()) -> None:
        self._events = [{key: str(each[key]) for key in ("day", "start", "end", "title")} for each in events]
        self._sort()

    def _sort(self) -> None:
        self._events.sort(key=lambda each: (each["day"], each["start"], each["end"], each["title"]))

    def snapshot(self) -> list[dict[str, str]]:
        """Return the appointments in order."""
        return self._events

    @tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
    def list_events(self, day: str) -> list[dict[str, str]]:
        """List the appointments of a day, in order.

        Args:
            day: The date, YYYY-MM-DD.
        """
        wanted = _day(day)
        return [each for each in self._events if each["day"] == wanted]

    @tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
    def add_event(self, day: str, start: Time, end: Time, title: str) -> str:
        """Enter an appointment; it must not overlap another one.

        Args:
            day: The date, YYYY-MM-DD.
            start: When it begins, HH:MM.
            end: When it ends, HH:MM, later than the beginning.
            title: What it is about.
        """
        wanted = _day(day)
        if end <= start:
            raise ModelMistake("The end must be later than the beginning.")
        for each in self._events:
            if each["day"] == wanted and start < each["end"] and each["start"] < end:
                raise ToolError(f"Overlaps {each['title']!r} from {each['start']} to {each['end']}.")
        self._events.append({"day": wanted, "start": start, "end": end, "title": title})
        self._sort()
        return f"entered {title} on {wanted} from {start} to {end}"

    @tool(domain="time", deterministic=True, isolation="inline", limits=_LIMITS)
    def cancel_event(self, day: str, start: Time) -> str:
        """Cancel the appointment that begins at a given time.

        Args:
            day: The date, YYYY-MM-DD.
            start: When it begins, HH:MM.
        """
        wanted = _day(day)
        for each in self._events:
            if each["day"] == wanted and each["start"] == start:
                self._events.remove(each)
                return f"cancelled {each['title']}"
        raise ToolError(f"No appointment begins on {wanted} at {start}.")
