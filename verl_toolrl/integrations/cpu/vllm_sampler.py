"""Draws one random number for a token of a seeded request on the CPU (`integrations.vllm_plugin`).

vLLM's CPU sampler draws exponential noise for every entry of the vocabulary, twice where every request carries a seed
(vllm/v1/sample/ops/topk_topp_sampler.py@0.28.0, `TopKTopPSampler.forward_cpu`): 60 of the 115 ms that a token of 32
requests took with a vocabulary of 49,152. Every request of a training run carries a seed, so that a rollout can be
repeated. Here a token is drawn by inverting the cumulative distribution, which follows the same probabilities in 2 ms.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["draw", "register"]


def draw(probs: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """Draw a token for each row.

    Args:
        probs: `(requests, vocabulary)` float32; a row need not sum to 1.
        generators: Of each row; one number is drawn from each.

    Returns:
        `(requests,)` int64. An entry of probability 0 is never drawn.
    """
    # In float32 the sum over a large vocabulary would lose entries of small probability.
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    uniform = torch.cat(
        [torch.rand(1, generator=generators[row], dtype=torch.float64) for row in range(probs.shape[0])]
    )
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=probs.shape[-1] - 1)


def register() -> None:
    """Let `TopKTopPSampler.forward_cpu` use `draw` where every request is seeded; harmless when called twice."""
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    original = TopKTopPSampler.forward_cpu
    if getattr(original, "_draws_once", False):
        return

    @functools.wraps(original)
    def forward_cpu(
        self: Any, logits: torch.Tensor, generators: dict[int, torch.Generator], k: Any, p: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(generators) != logits.shape[0] or self.use_fp64_gumbel:
            result: tuple[torch.Tensor, torch.Tensor | None] = original(self, logits, generators, k, p)
            return result
        logits = topk_topp_sampler.apply_top_k_top_p(logits, k, p)
        kept: torch.Tensor | None = None
        if self.logprobs_mode == "processed_logits":
            kept = logits
        elif self.logprobs_mode == "processed_logprobs":
            kept = logits.log_softmax(dim=-1, dtype=torch.float32)
        return draw(logits.softmax(dim=-1, dtype=torch.float32), generators), kept

    forward_cpu._draws_once = True  # type: ignore[attr-defined]
    TopKTopPSampler.forward_cpu = forward_cpu  # type: ignore[method-assign]
