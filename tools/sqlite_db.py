"""A SQLite database, a fresh copy for each trajectory.

Config: `{"database": "shop.db"}`, a file that is only read, or `{"script": "create table ...;"}`. A trajectory's state
may give either too. The copy lives in memory and goes with the trajectory. What could leave it (ATTACH, extensions,
most PRAGMAs) is forbidden, a query that runs too long or returns too much is the model's mistake.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.toolbox import ModelMistake, StatefulTool, tool

_DEFAULT = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers(id), day TEXT NOT NULL,
                     item TEXT NOT NULL, quantity INTEGER NOT NULL, price REAL NOT NULL);
INSERT INTO customers VALUES (1,'Ada Moreau','Lyon'),(2,'Bela Novak','Brno'),(3,'Chidi Okoye','Lagos');
INSERT INTO orders VALUES (1,1,'2026-01-05','lamp',2,24.0),(2,1,'2026-02-11','bread',4,2.8),
                          (3,2,'2026-02-12','coffee',1,7.5),(4,3,'2026-03-01','umbrella',3,15.0);
"""
_MAX_ROWS = 100
_SECONDS = 2.0
_MAX_MB = 64
_FORBIDDEN = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
_PRAGMAS = {"table_info", "table_list", "index_list", "index_info", "foreign_key_list"}


class Database(StatefulTool):
    """One copy of the database and the tools on it."""

    def __init__(self, database: str | None = None, script: str | None = None) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        try:
            if database is not None:
                _copy(database, self._connection)
            if script is not None or database is None:
                self._connection.executescript(_DEFAULT if script is None else script)
        except sqlite3.Error as err:
            self._connection.close()
            raise ConfigError(f"database {database or 'script'}: {err}") from err
        self._deadline = 0.0
        self._connection.execute(f"PRAGMA max_page_count = {_MAX_MB * 256}")
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 10_000)
        if hasattr(self._connection, "setlimit"):  # Python 3.11: one value must not fill the memory either
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)

    @classmethod
    def startup(cls, database: str | None = None, script: str | None = None) -> None:
        """Make one copy, so that a missing file or a wrong script is found before training."""
        cls(database, script).close()

    def close(self) -> None:
        """Give the copy up."""
        self._connection.close()

    def snapshot(self) -> dict[str, list[list[Any]]]:
        """Return the rows of every table, in the order of the table's first columns."""
        self._deadline = time.monotonic() + 10 * _SECONDS
        names = [
            row[0]
            for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")
        ]
        quoted = {name: '"' + name.replace('"', '""') + '"' for name in names if not name.startswith("sqlite_")}
        return {
            name: sorted(([*row] for row in self._connection.execute(f"SELECT * FROM {place}")), key=repr)
            for name, place in quoted.items()
        }

    @tool(domain="knowledge", deterministic=True, isolation="thread", limits={"timeout": 10.0, "output_tokens": 2048})
    def describe_database(self) -> list[str]:
        """Return the CREATE statements of all tables."""
        self._deadline = time.monotonic() + _SECONDS
        return [
            row[0]
            for row in self._connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        ]

    @tool(
        domain="knowledge",
        deterministic=True,
        isolation="thread",
        arguments_cause_timeout=True,
        limits={"timeout": 10.0, "output_tokens": 2048},
    )
    def query(self, sql: str) -> dict[str, Any]:
        """Run one SQL statement (SQLite) and return its columns and rows, at most 100, or how many rows it changed.

        Args:
            sql: The statement. Changes last until the end of the task.
        """
        self._deadline = time.monotonic() + _SECONDS
        try:
            cursor = self._connection.execute(sql)
            if cursor.description is None:
                return {"changed": max(cursor.rowcount, 0)}
            rows = cursor.fetchmany(_MAX_ROWS + 1)
            columns = [each[0] for each in cursor.description]
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning) as err:
            text = str(err)
            if "interrupted" in text:
                text = f"the statement ran longer than {_SECONDS:g} s"
            raise ModelMistake(f"SQL: {text}.") from err
        except (ValueError, OverflowError) as err:  # a null character, a number beyond 64 bits
            raise ModelMistake(f"SQL: {err}.") from err
        plain = [[_plain(value) for value in row] for row in rows[:_MAX_ROWS]]
        return {"columns": columns, "rows": plain, **({"more": True} if len(rows) > _MAX_ROWS else {})}


def _plain(value: Any) -> Any:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else value


def _copy(database: str, target: sqlite3.Connection) -> None:
    path = Path(database).expanduser()
    if not path.is_file():
        raise ConfigError(f"database {database}: no such file")
    source = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        source.backup(target)
    finally:
        source.close()


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action in _FORBIDDEN or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in _PRAGMAS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
