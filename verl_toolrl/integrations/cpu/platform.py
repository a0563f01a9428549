"""The platform `cpu` of verl: a machine whose accelerator is its processor.

Chosen by `VERL_PLATFORM=cpu` alone. Ray's resource pool counts only GPUs and NPUs
(verl/single_controller/ray/base.py@0.9.1), so a logical `GPU` stands for the processor and recipes start Ray with
`num_gpus=1`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

__all__ = ["PlatformCPU"]


class _CPUDeviceModule(ModuleType):
    """`torch.cpu` with what verl calls on an accelerator's module. Memory figures are those of the process."""

    def __init__(self) -> None:
        super().__init__("torch.cpu (verl_toolrl)")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def get_device_name(device: Any = None) -> str:
        return "CPU"

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def empty_cache() -> None:
        """Nothing is cached on a CPU."""

    ipc_collect = reset_peak_memory_stats = empty_cache

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        """Return (available, total) bytes of the machine."""
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        """Return the resident bytes of this process."""
        import psutil

        return psutil.Process().memory_info().rss

    memory_reserved = memory_allocated

    @staticmethod
    def max_memory_allocated(device: Any = None) -> int:
        """Return the largest resident size that this process has had, in bytes."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated


_DEVICE_MODULE = _CPUDeviceModule()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One processor, seen by verl as one device."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never detected: a login node has no GPU either, and must not start training on its processor.
        return False

    def current_device(self) -> torch.device:  # type: ignore[override]
        # verl calls `.to(get_device_id())`, where a number would mean a GPU.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        """Return `gloo`, and bring the process group of a worker up.

        verl builds the backend text `cpu:gloo,<device>:<backend>`, which on this device names the CPU twice and is
        refused by torch. It asks for the backend's name first and initialises only where no group exists
        (verl/utils/distributed.py@0.9.1, initialize_global_process_group_ray), so the group is made here.
        """
        if not torch.distributed.is_initialized() and "RANK" in os.environ and "MASTER_ADDR" in os.environ:
            torch.distributed.init_process_group(
                backend="gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ.get("WORLD_SIZE", "1")),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "VERL_CPU_VISIBLE"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def cudart(self) -> None:
        return None
