"""Shared by all tests: where the data lies that is kept beside the checkout."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with real data and executed vectors; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data and vectors), which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], Any]:
    """`make_tokenizer(family)`: a small tokenizer with the family's chat template; see tests/chat_templates.py."""
    return _beside("chat_templates").make_tokenizer


@pytest.fixture(scope="session")
def sample_rows() -> Callable[..., list[dict[str, str]]]:
    """`sample_rows(count, seed=)`: raw rows of a small task for tests that train; see tests/sample_task.py."""
    return _beside("sample_task").sample_rows


def _beside(name: str) -> Any:
    """Load a module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
