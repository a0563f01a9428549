"""What the loop asks of an inference engine, and no more: tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["Engine", "Generation"]


class Generation(NamedTuple):
    """What an engine wrote for one request."""

    tokens: Sequence[int]
    """Tokens in the order written, the one that stopped it included. Empty only if nothing was allowed or possible."""
    logprobs: Sequence[float] | None = None
    """Log-probability of each token; None where they were not asked for."""
    aborted: bool = False
    """The engine gave the request up half way (a weight update, a shutdown); the tokens so far are good."""


class Engine(Protocol):
    """An inference engine for one trajectory."""

    async def generate(self, prompt_ids: list[int], sampling: Mapping[str, Any], request_id: str) -> Generation:
        """Continue a prompt.

        Args:
            prompt_ids: The whole context as tokens. The engine must not change it.
            sampling: `max_tokens` and `stop_token_ids`, and whatever the run says of `temperature`, `top_p`, `top_k`,
                `repetition_penalty`, `logprobs` and the seed. Nothing that only one engine understands.
            request_id: The same for all turns of a trajectory, so that an engine can keep its cache.

        Raises:
            InfrastructureError: If the engine cannot be reached or died.
        """
        ...
