"""A contact book: one per trajectory.

Initial state: `{"contacts": [{"name": ..., "phone": ..., "email": ..., "city": ...}, ...]}`.
Without one the people below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from verl_toolrl.errors import nearest
from verl_toolrl.toolbox import StatefulTool, ToolError, tool

_DEFAULT = (
    {"name": "Ada Moreau", "phone": "+33 1 5550 1001", "email": "ada@example.org", "city": "Lyon"},
    {"name": "Bela Novak", "phone": "+420 555 010 002", "email": "bela@example.org", "city": "Brno"},
    {"name": "Chidi Okoye", "phone": "+234 555 010 003", "email": "chidi@example.org", "city": "Lagos"},
    {"name": "Dora Lind", "phone": "+46 555 010 004", "email": "dora@example.org", "city": "Malmö"},
    {"name": "Emi Sato", "phone": "+81 555 010 005", "email": "emi@example.org", "city": "Kyoto"},
)
_FIELDS = ("phone", "email", "city")
_LIMITS = {"timeout": 1.0, "output_tokens": 1024}


class ContactBook(StatefulTool):
    """The people and the tools on them."""

    def __init__(self, contacts: Sequence[Mapping[str, str]] | None = None) -> None:
        source = _DEFAULT if contacts is None else contacts
        self._people = {each["name"]: {key: str(each.get(key, "")) for key in _FIELDS} for each in source}

    def snapshot(self) -> dict[str, dict[str, str]]:
        """Return the people by name."""
        return self._people

    def _person(self, name: str) -> dict[str, str]:
        if name not in self._people:
            raise ToolError(f"There is no contact {name[:60]!r}{nearest(name, self._people) or '.'}")
        return self._people[name]

    @tool(domain="people", deterministic=True, isolation="inline", limits=_LIMITS)
    def find_contacts(self, query: str) -> list[dict[str, str]]:
        """Find contacts whose name, phone, email or city contains a text; case does not matter. At most 20.

        Args:
            query: The text; empty for everybody.
        """
        wanted = query.casefold()
        rows = ({"name": name, **person} for name, person in sorted(self._people.items()))
        return [row for row in rows if any(wanted in value.casefold() for value in row.values())][:20]

    @tool(domain="people", deterministic=True, isolation="inline", limits=_LIMITS)
    def add_contact(self, name: str, phone: str = "", email: str = "", city: str = "") -> str:
        """Add a person to the contact book.

        Args:
            name: Full name; must be new.
            phone: Phone number.
            email: Email address.
            city: Where the person lives.
        """
        if not name.strip():
            raise ToolError("A contact needs a name.")
        if name in self._people:
            raise ToolError(f"There already is a contact {name!r}.")
        self._people[name] = {"phone": phone, "email": email, "city": city}
        return f"added {name}"

    @tool(domain="people", deterministic=True, isolation="inline", limits=_LIMITS)
    def update_contact(self, name: str, field: Literal["phone", "email", "city"], value: str) -> str:
        """Change one field of a contact.

        Args:
            name: Full name as it stands in the book.
            field: Which field.
            value: The new value.
        """
        self._person(name)[field] = value
        return f"updated {field} of {name}"

    @tool(domain="people", deterministic=True, isolation="inline", limits=_LIMITS)
    def delete_contact(self, name: str) -> str:
        """Remove a person from the contact book.

        Args:
            name: Full name as it stands in the book.
        """
        self._person(name)
        del self._people[name]
        return f"deleted {name}"
