"""What the machine has: cores, memory, shared memory, disk, accelerators. A container's own limits count."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from verl_toolrl.integrations.doctor.report import Finding, Machine, Severity

__all__ = ["accelerator_nodes", "look_at_machine", "machine_findings"]

# Peak of all processes of the quickstart, and what verl, Ray and an engine take before any model is loaded.
COMFORTABLE_MEMORY_GB, LEAST_MEMORY_GB = 14.0, 6.0
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
    total, available = _memory()
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    ray_folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    free = {folder: round(shutil.disk_usage(folder).free / 1e9, 1) for folder in (os.getcwd(), ray_folder)}
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(total / 1e9, 1),
        memory_available_gb=round(available / 1e9, 1),
        shared_memory_free_gb=round(shared / 1e9, 3),
        disk_free_gb=free,
    )


def _memory() -> tuple[int, int]:
    """Return total and available bytes: the machine's, or the container's where it has a lower limit."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    fields = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    total, available = fields["MemTotal"], fields["MemAvailable"]
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return total, available
    # Files in the cache count as used but make room when it is needed.
    return min(total, limit), min(available, limit - used + int(stat.get("inactive_file", 0)))


def machine_findings(machine: Machine, on_cpu: bool) -> list[Finding]:
    """Say what is too small. On a machine with GPUs the model decides, so only shared memory and disk are judged."""
    findings = []
    memory = machine.memory_available_gb
    if on_cpu and memory < COMFORTABLE_MEMORY_GB:
        severity: Severity = "error" if memory < LEAST_MEMORY_GB else "warning"
        what = f"{memory} GB of memory are free, and the quickstart takes up to {COMFORTABLE_MEMORY_GB:.0f} GB"
        findings.append(Finding(severity, what, "end other programs (`verl-toolrl stop` ends left-over runs)"))
    if machine.shared_memory_free_gb < LEAST_SHARED_MEMORY_GB:
        what = f"{machine.shared_memory_free_gb} GB are free in /dev/shm; weights travel to the engine through it"
        findings.append(Finding("error", what, "start a container with `--shm-size=8g`, or empty /dev/shm"))
    for folder, free in machine.disk_free_gb.items():
        if free < LEAST_DISK_GB:
            what = f"{free} GB are free on the disk of {folder}; checkpoints or Ray's session will not fit"
            findings.append(Finding("error" if free < 0.5 else "warning", what, "make room"))
    return findings
