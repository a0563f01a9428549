"""For what starts processes or imports verl: without a GPU, the files side by side on as many cores as there are."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

# The two files with long trainings, one first and one last, so that neither waits for the other (fixture `alone`).
ORDER = {"test_training_on_cpu": 0, "test_tool_training": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.get(item.path.stem, 1))
