"""Whether the CPU was chosen. Outside `cpu/`, so that nothing of it is imported where it was not."""

from __future__ import annotations

import os

__all__ = ["is_cpu_platform"]


def is_cpu_platform() -> bool:
    """Return whether `VERL_PLATFORM=cpu`. It is never chosen by itself: login nodes have no GPU either."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
