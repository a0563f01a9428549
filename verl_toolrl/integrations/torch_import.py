"""What torch calls at the end of `import torch`, in every process (entry point group `torch.backends`).

Apart from what it leads to, so that nothing for the CPU is imported where the CPU was not chosen.
"""

from __future__ import annotations

from verl_toolrl.integrations.chosen_platform import is_cpu_platform

__all__ = ["prepare"]


def prepare() -> None:
    """Make SGLang work where `VERL_PLATFORM=cpu`; nothing otherwise."""
    if is_cpu_platform():
        from verl_toolrl.integrations.cpu import sglang_stand_ins

        sglang_stand_ins.prepare()
