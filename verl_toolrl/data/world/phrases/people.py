"""The contact book."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases
from verl_toolrl.data.world.pools import CITIES, LAST_NAMES, email_of, some_email, some_name, some_phone

__all__ = ["CONTACTS"]


def _query(draw: Random) -> dict[str, Any]:
    return {"query": draw.choice((some_name(draw), draw.choice(LAST_NAMES), draw.choice(CITIES)))}


def _new_contact(draw: Random) -> dict[str, Any]:
    name = some_name(draw)
    values = {"phone": some_phone(draw), "email": email_of(name), "city": draw.choice(CITIES)}
    keys = draw.choice((("phone",), ("email",), ("city",), ("phone", "city"), ("email", "city")))
    return {"name": name, **{key: values[key] for key in keys}}


def _change(draw: Random) -> dict[str, Any]:
    field = draw.choice(("phone", "email", "city"))
    value = {"phone": some_phone, "email": some_email, "city": lambda draw: draw.choice(CITIES)}[field](draw)
    return {"name": some_name(draw), "field": field, "value": value}


def _known(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"contacts": [{"name": call["name"], "phone": "1", "email": "a@example.org", "city": "Rome"}]}


CONTACTS = (
    Phrases(
        "find_contacts",
        draw=_query,
        wordings=(
            "Find {query} in my contacts.",
            "Look up {query} in the contact book.",
            "Search my contacts for {query}.",
            "Which of my contacts match {query}?",
        ),
        lookups=(Lookup("query", "{who} asks about {value}", "Find in my contacts what {who} asks about."),),
    ),
    Phrases(
        "add_contact",
        draw=_new_contact,
        wordings=(
            "Add {name} to my contacts, phone {phone}.",
            "Save {name} as a new contact with the phone number {phone}.",
            "New contact: {name}, phone {phone}.",
            "Add {name} to my contacts, email {email}.",
            "Save {name} as a new contact with the email address {email}.",
            "New contact: {name}, email {email}.",
            "Add {name} from {city} to my contacts.",
            "Save {name}, who lives in {city}, as a new contact.",
            "New contact: {name}, city {city}.",
            "Add {name} from {city} to my contacts, phone {phone}.",
            "Save {name} as a new contact: city {city}, phone {phone}.",
            "New contact: {name}, phone {phone}, living in {city}.",
            "Add {name} from {city} to my contacts, email {email}.",
            "Save {name} as a new contact: city {city}, email {email}.",
            "New contact: {name}, email {email}, living in {city}.",
        ),
        lookups=(
            Lookup("city", "{who} lives in {value}", "Add {name} to my contacts, with the city of {who}."),
            Lookup("phone", "{who} has the number {value}", "Add {name} to my contacts, with the phone of {who}."),
        ),
    ),
    Phrases(
        "update_contact",
        draw=_change,
        wordings=(
            "Change the {field} of {name} to {value}.",
            "The {field} of {name} is now {value}. Change it in my contacts.",
            "My contact {name} has a new {field}: {value}. Please update it.",
            "Set the {field} of my contact {name} to {value}.",
        ),
        lookups=(
            Lookup("value", "{who} has the {field} {value}", "Change the {field} of {name} to that of {who}."),
            Lookup(
                "name",
                "{who} works with {value}",
                "The contact who works with {who} has a new {field}: {value}. Change it.",
            ),
        ),
        state=_known,
    ),
    Phrases(
        "delete_contact",
        draw=lambda draw: {"name": some_name(draw)},
        wordings=(
            "Delete {name} from my contacts.",
            "Remove the contact {name}.",
            "I no longer need {name} in my contacts. Delete the entry.",
            "Take {name} out of the contact book.",
        ),
        lookups=(Lookup("name", "{who} works with {value}", "Delete the contact who works with {who}."),),
        state=_known,
    ),
)
