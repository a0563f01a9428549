"""Every tool schema of BFCL v4 survives the round trip and can be checked against.

The data lies in the wheel of PyPI's `bfcl-eval`, whose pins clash with verl, so the wheel is read as a zip file. It is
fetched once into the user's cache; the test is skipped where no index of pip has the project or can be reached.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.toolbox import ToolSchema
from verl_toolrl.toolbox.arguments import ArgumentChecker, compile_schema

_WHEEL = "bfcl_eval-2026.3.23-py3-none-any.whl"


@pytest.fixture(scope="module")
def schemas() -> list[dict[str, Any]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "verl-toolrl"
    wheel = cache / _WHEEL
    if not wheel.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = ["pip", "download", "bfcl-eval==2026.3.23", "--no-deps", "--quiet", "--dest", folder]
            done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
            if done.returncode != 0:
                done = subprocess.run(command, capture_output=True, text=True)
            found = list(Path(folder).glob("bfcl_eval-*.whl"))
            if "(from versions: none)" in done.stderr:
                pytest.skip(f"the wheel of bfcl-eval cannot be had: {done.stderr.strip()[-200:]}")
            assert found, done.stderr
            cache.mkdir(parents=True, exist_ok=True)
            part = wheel.with_suffix(f".{os.getpid()}")
            shutil.copyfile(found[0], part)
            part.replace(wheel)  # whole, or not there
    with zipfile.ZipFile(wheel) as archive:
        names = [each for each in archive.namelist() if "/data/" in each and each.endswith(".json")]
        return [schema for name in names for schema in _schemas(archive.read(name).decode())]


def _schemas(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            blocks = row.get("function", [row] if "parameters" in row else [])
            yield from ([blocks] if isinstance(blocks, dict) else blocks)


def test_all_schemas_survive_the_round_trip_and_compile(schemas: list[dict[str, Any]]):
    assert len(schemas) > 6000
    for block in schemas:
        schema = ToolSchema.from_dict(block)
        assert schema.to_dict()["function"] == block
        ArgumentChecker(schema)


def test_what_the_schemas_say_is_checked(schemas: list[dict[str, Any]]):
    """A required argument that is left out is refused by every schema that names one."""
    refused = 0
    for block in schemas:
        required = block["parameters"].get("required")
        if required:
            assert not compile_schema(ToolSchema.from_dict(block).parameters, block["name"]).is_valid({})
            refused += 1
    assert refused > 5000
