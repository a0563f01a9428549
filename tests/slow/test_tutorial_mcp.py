"""The tutorial with an MCP server, as it is written; the one with a function is in tests/integration."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("mcp", reason="needs the MCP SDK")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    path = Path(__file__).parents[1] / "integration" / "test_tutorial.py"
    spec = importlib.util.spec_from_file_location("tutorials", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_mcp_server_trains_a_model(tutorials: ModuleType, tmp_path: Path) -> None:
    from verl_toolrl.integrations.smollm2 import export_smollm2

    export_smollm2()
    steps = tutorials.follow(tutorials.tutorial("From an MCP server to training"), tmp_path)
    assert [1] == [step["training/global_step"] for step in steps]
