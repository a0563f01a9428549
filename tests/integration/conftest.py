"""For what starts processes or imports verl: without a GPU, on as many cores as there are."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

# Runs that fill the memory of a small machine, and what shares a model with them: one after the other.
TRAINING = ("test_training_on_cpu", "test_tool_training", "test_evaluate")


# Before pytest-xdist's own, which writes the group into the names of the tests.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests of a file run in one process, so that what a file prepares is prepared once."""
    for item in items:
        name = item.path.stem
        if item.path.parent.name == "integration":
            item.add_marker(pytest.mark.xdist_group("training" if name in TRAINING else name))
