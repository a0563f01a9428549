"""The handbook of a small town and the database of orders."""

from __future__ import annotations

from random import Random
from typing import Any

from verl_toolrl.data.world.asks import Lookup, Phrases

__all__ = ["CORPUS", "DATABASE"]

_TOPICS = (
    *("late fee", "library card", "ferry in winter", "ferry fares", "bus tickets", "market days", "lighthouse steps"),
    *("museum admission", "swimming pool", "parking garage", "glass collection", "dog tax", "passport", "hospital"),
    *("school holidays", "lantern festival", "theatre tickets", "cycle path", "drinking water", "town hall hours"),
)
_DOCUMENTS = (
    *("opening-hours", "library-card", "loan-period", "late-fee", "ferry-summer", "ferry-winter", "ferry-fares"),
    *("bus-line-1", "bus-line-4", "bus-tickets", "market", "harbour-history", "lighthouse", "museum", "pool"),
    *("parking", "waste", "dog-tax", "town-hall", "passport", "school-holidays", "hospital", "university"),
    *("population", "sister-cities", "festival", "theatre", "weather", "cycling", "drinking-water"),
)
_COLUMNS = {"customers": ("id", "name", "city"), "orders": ("id", "day", "item", "quantity", "price")}


def _search(draw: Random) -> dict[str, Any]:
    found: dict[str, Any] = {"query": draw.choice(_TOPICS)}
    if draw.random() < 0.5:
        found["top_k"] = draw.randint(1, 12)
    return found


def _statement(draw: Random) -> dict[str, Any]:
    table = draw.choice(tuple(_COLUMNS))
    column = draw.choice(_COLUMNS[table])
    forms = (
        f"SELECT {column} FROM {table}",
        f"SELECT count(*) FROM {table} WHERE id > {draw.randint(0, 9)}",
        f"SELECT {column} FROM {table} WHERE id = {draw.randint(1, 9)}",
        f"SELECT {column} FROM {table} ORDER BY {draw.choice(_COLUMNS[table])} LIMIT {draw.randint(1, 9)}",
        f"SELECT max({column}) FROM {table}",
        f"DELETE FROM orders WHERE quantity < {draw.randint(2, 9)}",
    )
    return {"sql": draw.choice(forms)}


CORPUS = (
    Phrases(
        "search",
        draw=_search,
        wordings=(
            'Search the documents for "{query}".',
            'Look for "{query}" in the documents.',
            'Do the documents say anything about "{query}"? Search for it.',
            'Search for the words "{query}" in the documents.',
            'Search the documents for "{query}" and return {top_k} of them.',
            'Give me the {top_k} best documents for "{query}".',
            'Look for "{query}" in the documents. I want {top_k} results.',
            'I want {top_k} documents on "{query}". Search for them.',
        ),
        lookups=(Lookup("query", '{who} looks for "{value}"', "Search the documents for what {who} looks for."),),
    ),
    Phrases(
        "read_document",
        draw=lambda draw: {"id": draw.choice(_DOCUMENTS)},
        wordings=(
            "Read the document {id}.",
            "Open the document with the id {id}.",
            "Show me the whole document {id}.",
            "What does the document {id} say?",
        ),
        lookups=(Lookup("id", "{who} wrote the document {value}", "Read the document that {who} wrote."),),
    ),
)

DATABASE = (
    Phrases(
        "describe_database",
        draw=lambda draw: {},
        wordings=(
            "Which tables does the database have?",
            "Describe the database to me.",
            "Show me how the tables of the database were created.",
            "What is the structure of the database?",
        ),
    ),
    Phrases(
        "query",
        draw=_statement,
        wordings=(
            'Run this SQL statement: "{sql}".',
            'Execute on the database: "{sql}".',
            'What does the database answer to "{sql}"?',
            'Send "{sql}" to the database.',
        ),
        lookups=(Lookup("sql", '{who} wrote "{value}"', "Run the SQL statement of {who}."),),
    ),
)
