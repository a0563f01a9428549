"""For what starts processes or imports verl: without a GPU, the files side by side on as many cores as there are."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

# The two files with long trainings, one first and one last, so that neither waits for the other (fixture `alone`).
ORDER = {"test_training_on_cpu": 0, "test_tool_training": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.get(item.path.stem, 1))


@pytest.fixture(scope="module")
def read_verls_files_once() -> Iterator[None]:
    """Let Hydra read each of verl's files once: half of the time of a composition is the reading of the same YAML."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    from verl_toolrl.launch.recipes import verl_configs

    read = FileConfigSource.load_config
    known: dict[tuple[str, str], Any] = {}

    def load_config(self: FileConfigSource, config_path: str) -> Any:
        key = (self.path, config_path)
        if not Path(self.path).is_relative_to(verl_configs()):  # recipes that the tests write
            return read(self, config_path)
        if key not in known:
            known[key] = read(self, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_config)
        yield
