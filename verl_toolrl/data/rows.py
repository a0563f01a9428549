"""Reading rows from files: Parquet, JSON lines, JSON; verl's RL schema or ToolRL's raw supervised form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_toolrl.errors import DatasetError

__all__ = ["read_rows"]


def read_rows(path: Path, *, as_they_are: bool = False) -> list[Any]:
    """Read all rows of a file.

    Args:
        path: .parquet, .jsonl or .json.
        as_they_are: Leave ToolRL's raw rows as they are, too.

    ToolRL's raw rows `{instruction, input, output}` become rows of verl's schema, as its own converter does (specs of
    qiancheng0/ToolRL@8cee13e, dataset/rlla_4k_raw/rlla.py); rows of any other form stay as they are.

    Raises:
        DatasetError: If the file does not exist, is of another kind, or cannot be read.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = [_decode(line, f"{path}: line {number}") for number, line in _lines(path) if line.strip()]
    elif path.suffix == ".json":
        rows = _decode(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(rows, list):
            raise DatasetError(f"{path}: wanted a list of rows, got {type(rows).__name__}")
    else:
        raise DatasetError(f"{path}: wanted a .parquet, .jsonl or .json file")
    return rows if as_they_are else [_from_raw(row, index) for index, row in enumerate(rows)]


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as err:
        raise DatasetError(f"{path}: not readable as Parquet ({err})") from err
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    # Not splitlines: it also cuts at characters that may stand inside JSON strings.
    return list(enumerate(path.read_text(encoding="utf-8").split("\n"), 1))


def _decode(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise DatasetError(f"{where}: not JSON ({err})") from err


def _from_raw(row: Any, index: int) -> Any:
    if not isinstance(row, Mapping) or not {"instruction", "input", "output"} <= set(row) or "prompt" in row:
        return row
    return {
        "data_source": "rlla",
        "prompt": [
            {"role": "system", "content": row["instruction"]},
            {"role": "user", "content": row["input"]},
        ],
        "reward_model": {"style": "rule", "ground_truth": row["output"]},
        "extra_info": {"index": index},
    }
