"""Environment of the processes of a run on the CPU: threads and memory.

Set where verl is first imported, so that Ray, its workers and vLLM inherit it. What the user has set stays.
"""

from __future__ import annotations

import os

__all__ = ["install", "settings"]


def settings() -> dict[str, str]:
    """Return the variables with their values.

    Threads: Ray gives an actor one thread unless told otherwise. Trainer and engine take turns, so each may use all
    cores, and a thread that waits must not spin on a core that another one needs. It looks for some 20 microseconds
    before it sleeps, since between two small operators sleeping and waking cost more than the operators do.

    Memory: glibc returns a large tensor to the kernel when it is freed and faults it in again, page by page: half a
    million faults a step. Up to 32 MB, the most that glibc takes, they stay in one heap of huge pages. Larger ones are
    mapped each by itself: kept as well, they were a sixth faster but left holes that no other length filled, and the
    trainer's memory went from 9 to 14 GB within nine steps of long trajectories. oneDNN, which multiplies for torch,
    keeps a compiled kernel for each shape that it has seen, 1,024 of them; lengths are new in nearly every pass, so
    that those alone took some 0.8 GB. With 128 the kernels of a pass still find each other.
    """
    return {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "2000",
        "MALLOC_ARENA_MAX": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        # vLLM: no thread is pinned to a core, since the trainer uses the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # SGLang takes the processor only when told to, and verl's server for it asks which device its workers see.
        "SGLANG_USE_CPU_ENGINE": "1",
        "VERL_CPU_VISIBLE": "0",
    }


def install() -> None:
    """Set what the user has not set, for the processes that this one will start."""
    for name, value in settings().items():
        os.environ.setdefault(name, value)
