"""Keeps vLLM's weights replaceable on the CPU (`integrations.vllm_plugin`, every vLLM process).

vLLM's CPU linear layers repack their weight for a faster kernel and drop the original
(vllm/model_executor/layers/linear.py@0.28.0: `dispatch_cpu_unquantized_gemm(layer, remove_weight=True)`). A trainer
that sends new weights then finds a parameter without loader and without room. With the original kept, the repacking
that follows each weight update is right.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["register"]


def register() -> None:
    """Let `dispatch_cpu_unquantized_gemm` keep the original weight; harmless when called twice."""
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "_keeps_weight", False):
        return

    @functools.wraps(original)
    def keep_weight(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    keep_weight._keeps_weight = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = keep_weight
