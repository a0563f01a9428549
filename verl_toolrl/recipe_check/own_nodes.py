"""The nodes that recipes add to verl's tree, declared: verl refuses no typo there."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OWN_NODES"]


@dataclass(frozen=True)
class _ModelFacts:
    """`launch.model`: figures of the model's config.json, so that a check needs no download."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int


@dataclass(frozen=True)
class _Lengths:
    """`launch.lengths`: tokens that the method's source gives a row."""

    prompt: int
    response: int


@dataclass(frozen=True)
class _Devices:
    """A part of `launch.split`."""

    nnodes: int
    n_gpus_per_node: int


@dataclass(frozen=True)
class _Split:
    """`launch.split`: which GPUs of the hardware train, and which only write, with mode=separate_async."""

    trainer: _Devices
    rollout: _Devices


@dataclass(frozen=True)
class _Launch:
    """`launch`: what the parts of a recipe tell each other, and what is looked at before a start."""

    model: _ModelFacts
    lengths: _Lengths
    split: _Split
    offload: bool
    offload_critic: bool
    offload_ref: bool
    tensor_parallel: int
    dialect: str
    start: str
    checkpoint: str
    memory_gb: float
    dtype: str


@dataclass(frozen=True)
class _About:
    """`recipe`: what a recipe says about itself in `recipes list` and `recipes show`."""

    title: str
    reproduces: str
    ran: str


OWN_NODES: dict[str, type] = {"launch": _Launch, "recipe": _About}
"""Key of a node -> a dataclass of its keys with their types; all are optional."""
