"""Shared by all tests: where the data lies that is kept beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with real data and executed vectors; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data and vectors), which is not beside this checkout")
    return SHARED
