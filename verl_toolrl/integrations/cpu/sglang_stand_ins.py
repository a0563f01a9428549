"""What SGLang takes for granted and a machine without a GPU has not (entry point group `torch.backends`).

torch calls `prepare` at the end of `import torch`, in every process; SGLang's scheduler and detokenizer are spawned and
load neither verl nor our plugin before they need this. Nothing is done unless `VERL_PLATFORM=cpu`, SGLang is installed
and torch is a CPU build. Facts from sglang 0.5.12:

  - `srt/mem_cache/memory_pool_host.py` imports copy functions out of the compiled package `sgl_kernel`, which exists
    for CUDA only. A stand-in is found where no real package is; its functions raise when they are called. It defines
    no operators: their absence makes SGLang take its native paths.
  - `srt/utils/common.py` imports torchvision, whose PyPI wheel cannot load its own library without CUDA and then fails
    on the missing schemas of two operators. They are declared here.
  - `srt/utils/patch_torch.py` rewrites the seventh part of every reduced tensor, and one on the CPU has three. It
    leaves torch alone where its mark says that this was done already.
  - Weights go from the trainer's process to the scheduler's as shared memory. torch passes a file descriptor by
    default, which needs the sender's secret; two actors of Ray share none. A file name needs no secret.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from verl_toolrl.integrations.chosen_platform import is_cpu_platform

__all__ = ["prepare"]

_KERNELS = "sgl_kernel"
_kept: list[Any] = []  # torch forgets an operator when its library is collected


def prepare() -> None:
    """Make `import sglang` and its transfer of weights work; harmless when called twice."""
    if _kept or not is_cpu_platform() or importlib.util.find_spec("sglang") is None:
        return
    import torch
    from torch.multiprocessing import reductions

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(operators)
    sys.meta_path.append(_KernelsFinder())
    reductions._reduce_tensor_original = reductions.reduce_tensor  # type: ignore[attr-defined]
    torch.multiprocessing.set_sharing_strategy("file_system")


class _KernelsFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for `sgl_kernel` and `sgl_kernel.kvcacheio`. Last on the path, so that a real package is found first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (_KERNELS, f"{_KERNELS}.kvcacheio"):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == _KERNELS)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ != _KERNELS:
            module.__getattr__ = _missing_kernel  # type: ignore[method-assign]


def _missing_kernel(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def raise_on_call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{_KERNELS}.kvcacheio.{name} needs CUDA")

    return raise_on_call
