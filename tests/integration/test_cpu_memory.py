"""Memory that a training step frees goes back to the kernel where verl asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("verl", reason="needs verl")

# 64 blocks of 8 MB of which every second one is freed: nothing of that lies at the end of the heap.
SCRIPT = """
import verl
from verl.utils.device import get_torch_device
import torch

device = get_torch_device()
blocks = [torch.ones(2_000_000) for _ in range(64)]
full = device.memory_allocated()
del blocks[::2]
freed = device.memory_allocated()
device.empty_cache()
print(full, freed, device.memory_allocated(), float(sum(block.sum() for block in blocks)))
"""


def test_empty_cache_gives_the_holes_of_the_heap_back() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # verl sets the environment of its processes when it is imported; here it has to be there from the start.
    from verl_toolrl.integrations.cpu.environment import settings

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | settings() | {"VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    full, freed, emptied, total = (float(figure) for figure in done.stdout.split()[-4:])
    holes = 32 * 8_000_000
    assert full - freed < 0.2 * holes  # the heap keeps what was freed
    assert full - emptied > 0.8 * holes
    assert total == 32 * 2_000_000
