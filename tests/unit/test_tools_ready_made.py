"""The ready-made tools, each by a table of calls with their answers."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import AuthorError
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.toolbox.toolset import ready_made
from verl_toolrl.trajectory import Outcome, StopReason, ToolCall, ToolResult

OK, MODEL, TOOL = Outcome.OK, Outcome.MODEL_ERROR, Outcome.TOOL_ERROR


def ask(where: str, *calls: ToolCall, **options: Any) -> list[ToolResult]:
    async def run() -> list[ToolResult]:
        async with Toolbox.load(where) as box, box.session("t", **options) as session:
            return [await session.call(call) for call in calls]

    return asyncio.run(run())


# Numbers by hand, or by the definition that the file names.
_CASES: list[tuple[str, dict[str, Any], Outcome, Any]] = [
    ("calculate", {"expression": "3 * (2 + 4) ** 2"}, OK, 108),
    ("calculate", {"expression": "2^10"}, OK, 1024),
    ("calculate", {"expression": "0.1 + 0.2"}, OK, 0.3),
    ("calculate", {"expression": "-7 // 2"}, OK, -4),
    ("calculate", {"expression": "sqrt(16) + abs(-3) + max(1, 2)"}, OK, 9),
    ("calculate", {"expression": "1 / 0"}, MODEL, "Division by zero"),
    ("calculate", {"expression": "9**9**9**9"}, MODEL, "too large"),
    ("calculate", {"expression": "(-1) ** 0.5"}, MODEL, "not a real number"),
    ("calculate", {"expression": "sqrt(-1)"}, MODEL, "Cannot be computed"),
    ("calculate", {"expression": "__import__('os').system('true')"}, MODEL, "Not allowed"),
    ("calculate", {"expression": "(1).__class__"}, MODEL, "Not allowed"),
    ("calculate", {"expression": "[i for i in (1,)]"}, MODEL, "Not allowed"),
    ("calculate", {"expression": "'a' * 10"}, MODEL, "Not allowed"),
    ("calculate", {"expression": "1 +"}, MODEL, "Not an arithmetic expression"),
    ("calculate", {"expression": "(" * 240 + "1" + ")" * 240}, MODEL, "Not an arithmetic"),
    ("calculate", {"expression": "1" * 501}, MODEL, "at most 500"),
    ("calculate", {"expression": "-" * 490 + "1"}, OK, 1),
    ("calculate", {"expression": "round(2.5, 10**9)"}, OK, 2.5),
    ("calculate", {"expression": "exp(1000)"}, MODEL, "Cannot be computed"),
    ("summarize_numbers", {"numbers": [1, 2, 3, 10], "measure": "median"}, OK, 2.5),
    ("summarize_numbers", {"numbers": [2, 4, 4, 4, 5, 5, 7, 9], "measure": "stdev"}, OK, 2.13808993529940),
    ("summarize_numbers", {"numbers": [1], "measure": "stdev"}, MODEL, "two numbers"),
    ("summarize_numbers", {"numbers": [], "measure": "mean"}, MODEL, "numbers"),
    ("convert_unit", {"value": 1, "from_unit": "mile", "to_unit": "km"}, OK, 1.609344),
    ("convert_unit", {"value": -40, "from_unit": "celsius", "to_unit": "fahrenheit"}, OK, -40.0),
    ("convert_unit", {"value": -300, "from_unit": "celsius", "to_unit": "kelvin"}, MODEL, "absolute zero"),
    ("convert_unit", {"value": 1, "from_unit": "kg", "to_unit": "m"}, MODEL, "unit of mass"),
    ("convert_unit", {"value": 1, "from_unit": "mils", "to_unit": "km"}, MODEL, "did you mean 'mile'"),
    ("convert_unit", {"value": 1e308, "from_unit": "GiB", "to_unit": "byte"}, MODEL, "too large"),
    # 100 USD = 90 EUR; 90 EUR = 100 USD = 80 GBP.
    ("convert_currency", {"amount": 90, "from_currency": "EUR", "to_currency": "GBP"}, OK, 80.0),
    ("convert_currency", {"amount": -1, "from_currency": "EUR", "to_currency": "GBP"}, MODEL, "amount"),
    ("add_to_date", {"start": "2024-01-31", "amount": 1, "unit": "months"}, OK, "2024-02-29"),
    ("add_to_date", {"start": "2024-02-29", "amount": -1, "unit": "years"}, OK, "2023-02-28"),
    ("add_to_date", {"start": "2026-12-30", "amount": 1, "unit": "weeks"}, OK, "2027-01-06"),
    ("add_to_date", {"start": "2026-12-30", "amount": 10**12, "unit": "days"}, MODEL, "years 1 to 9999"),
    ("days_between", {"start": "2024-02-01", "end": "2024-03-01"}, OK, 29),
    ("day_of_week", {"day": "2026-01-01"}, OK, "Thursday"),
    ("day_of_week", {"day": "tomorrow"}, MODEL, "YYYY-MM-DD"),
    ("add_event", {"day": "2026-05-04", "start": "10:00", "end": "09:00", "title": "x"}, MODEL, "later"),
    ("add_event", {"day": "2026-05-04", "start": "25:00", "end": "26:00", "title": "x"}, MODEL, "start"),
    ("cancel_event", {"day": "2026-05-04", "start": "10:00"}, TOOL, "No appointment"),
    ("check_stock", {"item": "lamp"}, OK, {"item": "lamp", "quantity": 3, "price": 24.0}),
    ("sell", {"item": "lamp", "quantity": 4}, TOOL, "Only 3"),
    ("sell", {"item": "lamp", "quantity": 0}, MODEL, "quantity"),
    ("sell", {"item": "lmp", "quantity": 1}, TOOL, "did you mean 'lamp'"),
    ("find_contacts", {"query": "MALM"}, OK, None),
    ("add_contact", {"name": "Ada Moreau"}, TOOL, "already"),
    ("delete_contact", {"name": "Nobody"}, TOOL, "no contact"),
    ("search", {"query": "ferry in winter", "top_k": 1}, OK, None),
    ("search", {"query": "zzzz"}, OK, []),
    ("search", {"query": ""}, OK, []),
    ("read_document", {"id": "nope"}, TOOL, "no document"),
    ("query", {"sql": "SELECT count(*) AS n FROM orders"}, OK, {"columns": ["n"], "rows": [[4]]}),
    ("query", {"sql": "SELEC 1"}, MODEL, "syntax"),
    ("query", {"sql": "SELECT 1; SELECT 2"}, MODEL, "one statement"),
    ("query", {"sql": "ATTACH '/tmp/x.db' AS x"}, MODEL, "not authorized"),
    ("query", {"sql": "PRAGMA journal_mode=WAL"}, MODEL, "not authorized"),
    ("query", {"sql": "VACUUM INTO '/tmp/x.db'"}, MODEL, ""),
    ("query", {"sql": "SELECT load_extension('x')"}, MODEL, ""),
    ("query", {"sql": "SELECT length(zeroblob(100000000))"}, MODEL, ""),
    ("query", {"sql": "SELECT '\x00'"}, MODEL, ""),
    ("finish", {"answer": "42"}, OK, "42"),
]


@pytest.mark.parametrize(("name", "arguments", "outcome", "answer"), _CASES, ids=lambda each: str(each)[:50])
def test_a_call_gives_its_answer(name: str, arguments: dict[str, Any], outcome: Outcome, answer: Any):
    result = ask("quickstart", ToolCall(name, arguments))[0]
    assert outcome is result.outcome, result
    if outcome is not OK:
        assert answer in result.content
    elif isinstance(answer, float):
        assert result.value == pytest.approx(answer)
    elif answer is not None:
        assert answer == result.value


def test_at_least_ten_deterministic_tools_in_four_domains_train_the_quickstarts():
    tools = Toolbox.load("quickstart").tools.values()
    assert all(each.deterministic for each in tools)
    assert len(tools) >= 10 and len({each.domain for each in tools} - {"control"}) >= 4


def test_every_ready_made_file_loads_and_its_tools_are_documented():
    for name, path in ready_made().items():
        for each in Toolbox.load(name).tools.values():
            assert each.domain, f"{name}: {each}"
            assert each.limits.timeout is not None and each.limits.output_tokens is not None
            for key, schema in each.schema.parameters["properties"].items():
                assert schema.get("description"), f"{path.name}: {each}: {key} is not described"


def test_the_same_calls_give_the_same_answers_and_states_twice():
    calls = [ToolCall(name, arguments) for name, arguments, *_ in _CASES if name != "finish"]

    async def run() -> Any:
        async with Toolbox.load("quickstart") as box, box.session() as session:
            session.budget = type(session.budget)()
            results = [await session.call(call) for call in calls]
            return [(each.outcome, each.content) for each in results], await session.snapshot()

    assert asyncio.run(run()) == asyncio.run(run())


def test_an_agenda_keeps_its_appointments_apart():
    day = {"day": "2026-05-04"}
    results = ask(
        "agenda",
        ToolCall("add_event", {**day, "start": "09:00", "end": "10:00", "title": "tea"}),
        ToolCall("add_event", {**day, "start": "09:30", "end": "11:00", "title": "overlap"}),
        ToolCall("add_event", {**day, "start": "10:00", "end": "11:00", "title": "next"}),
        ToolCall("cancel_event", {**day, "start": "09:00"}),
        ToolCall("list_events", day),
    )
    assert [each.outcome for each in results] == [OK, TOOL, OK, OK, OK]
    assert [each["title"] for each in results[-1].value] == ["next"]


def test_a_trajectory_brings_its_own_stock_and_contacts():
    stock = {"Inventory": {"stock": {"pen": {"quantity": 2, "price": 1.5}}}}
    sold, left = ask("inventory", ToolCall("sell", {"item": "pen", "quantity": 2}), ToolCall("list_items"), state=stock)
    assert (sold.value, left.value) == ({"item": "pen", "total": 3.0, "quantity": 0}, ["pen"])


def test_finish_ends_the_trajectory():
    async def run() -> None:
        async with Toolbox.load("finish") as box, box.session() as session:
            await session.call(ToolCall("finish", {"answer": "done"}))
            assert session.stop_reason is StopReason.FINISHED

    asyncio.run(run())


def test_each_trajectory_changes_a_copy_of_the_database(tmp_path: Path):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = path.read_bytes()
    (tmp_path / "set.yaml").write_text(f"tools: [{{use: sqlite_db, config: {{database: {path}}}}}]")
    where = str(tmp_path / "set.yaml")
    insert, count = (
        ToolCall("query", {"sql": "INSERT INTO t VALUES (1)"}),
        ToolCall("query", {"sql": "SELECT * FROM t"}),
    )
    for _ in range(2):
        changed, rows = ask(where, insert, count)
        assert changed.value == {"changed": 1} and rows.value["rows"] == [[1]]
    assert path.read_bytes() == before


def test_a_query_without_end_is_stopped_and_is_the_models_mistake():
    endless = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r"
    result, after = ask("sqlite_db", ToolCall("query", {"sql": endless}), ToolCall("query", {"sql": "SELECT 1"}))
    assert result.outcome is MODEL and "longer than" in result.content
    assert after.outcome is OK


def test_results_of_a_query_are_bounded():
    many = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r LIMIT 1000) SELECT i FROM r"
    result = ask("sqlite_db", ToolCall("query", {"sql": many}))[0]
    assert len(result.value["rows"]) == 100 and result.value["more"] is True


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        pytest.param("{use: sqlite_db, config: {database: none.db}}", "none.db: no such file", id="database"),
        pytest.param("{use: sqlite_db, config: {script: 'CREATE'}}", "incomplete input", id="script"),
        pytest.param("{use: corpus_search, config: {corpus: none.jsonl}}", "none.jsonl", id="corpus"),
        pytest.param("{use: http_fetch}", "needs hosts", id="no hosts"),
        pytest.param(
            "{use: http_fetch, config: {hosts: [a], private_networks: [x]}}", "private_networks", id="network"
        ),
    ],
)
def test_a_tool_that_cannot_work_is_found_when_the_toolbox_opens(tmp_path: Path, entry: str, words: str):
    (tmp_path / "set.yaml").write_text(f"tools: [{entry}]")
    with pytest.raises(AuthorError, match=words):
        ask(str(tmp_path / "set.yaml"))
