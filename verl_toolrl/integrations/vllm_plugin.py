"""What vLLM calls in every one of its processes (entry point group `vllm.general_plugins`).

Apart from what it leads to, so that nothing for the CPU is imported where the CPU was not chosen.
"""

from __future__ import annotations

from verl_toolrl.integrations.chosen_platform import is_cpu_platform

__all__ = ["register"]


def register() -> None:
    """Change what vLLM does on the CPU where `VERL_PLATFORM=cpu`; nothing otherwise. Harmless when called twice."""
    if is_cpu_platform():
        from verl_toolrl.integrations.cpu import vllm_sampler, vllm_weights

        vllm_weights.register()
        vllm_sampler.register()
