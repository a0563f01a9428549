"""What the machine has: cores, memory, shared memory, disk, accelerators. A container's own limits count."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

import yaml

from verl_toolrl.doctor.report import Finding, Machine
from verl_toolrl.launch.preflight import available_memory

__all__ = ["accelerator_nodes", "cpu_recipe_memory_gb", "look_at_machine", "machine_findings"]

# Weights travel to the engine through shared memory, in buckets; Docker gives 0.064 GB unless told otherwise.
LEAST_SHARED_MEMORY_GB = 0.5
LEAST_DISK_GB = 2.0

ACCELERATORS = {
    "/dev/nvidia[0-9]*": "NVIDIA",
    "/dev/dxg": "NVIDIA (WSL)",
    "/dev/kfd": "AMD",
    "/dev/davinci[0-9]*": "Ascend",
}


def accelerator_nodes() -> tuple[str, ...]:
    """Name the accelerators that the kernel offers, without loading any driver."""
    root = Path("/")
    return tuple(vendor for pattern, vendor in ACCELERATORS.items() for _ in root.glob(pattern[1:]))


def look_at_machine() -> Machine:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    ray_folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    free = {folder: round(disk_free(folder) / 1e9, 1) for folder in (os.getcwd(), ray_folder)}
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(total / 1e9, 1),
        memory_available_gb=round(available_memory() / 1e9, 1),
        shared_memory_free_gb=round(shared / 1e9, 3),
        disk_free_gb=free,
    )


def disk_free(folder: str) -> int:
    """Bytes that are free where a folder is, or will be: Ray makes its own."""
    path = Path(folder).absolute()
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free


def cpu_recipe_memory_gb() -> float:
    """Return `launch.memory_gb` of recipes/hardware/cpu.yaml, below which `verl-toolrl train` does not start."""
    text = files("verl_toolrl.recipes").joinpath("hardware", "cpu.yaml").read_text()
    return float(yaml.safe_load(text)["launch"]["memory_gb"])


def machine_findings(machine: Machine, on_cpu: bool) -> list[Finding]:
    """Say what is too small. On a machine with GPUs the model decides, so only shared memory and disk are judged."""
    findings = []
    needed = cpu_recipe_memory_gb()
    if on_cpu and machine.memory_available_gb < needed:
        what = f"recipes for the CPU need about {needed:g} GB of memory, and {machine.memory_available_gb} GB are free"
        remedy = "end other programs (`verl-toolrl stop` ends runs that were left behind)"
        findings.append(Finding("error", what, remedy))
    if machine.shared_memory_free_gb < LEAST_SHARED_MEMORY_GB:
        what = f"{machine.shared_memory_free_gb} GB are free in /dev/shm; weights travel to the engine through it"
        findings.append(Finding("error", what, "start a container with `--shm-size=8g`, or empty /dev/shm"))
    for folder, free in machine.disk_free_gb.items():
        if free < LEAST_DISK_GB:
            what = f"{free} GB are free on the disk of {folder}; checkpoints or Ray's session will not fit"
            findings.append(Finding("error" if free < 0.5 else "warning", what, "make room"))
    return findings
