"""verl's own configuration, composed with the engine that a recipe chooses: what a recipe is compared with."""

from __future__ import annotations

import functools

from verl_toolrl.launch.recipes import Composed, Recipe, compose

__all__ = ["engine_of", "root_of", "verl_base"]

_ENGINES = {"FSDP": "dp", "Mcore": "megatron", "VeOmni": "veomni", "TorchTitan": "torchtitan"}
"""Beginning of the actor's dataclass -> verl's choice of `model_engine`."""


def root_of(composed: Composed) -> str:
    """Return which of verl's two configurations a recipe builds on: that of the RL or of the supervised trainer."""
    return "ppo_trainer" if "actor_rollout_ref" in composed.config else "sft_trainer_engine"


def engine_of(composed: Composed) -> str:
    """Return verl's choices of engine and, for a supervised recipe, of the optimizer behind a comma."""
    if root_of(composed) == "sft_trainer_engine":
        return f"{composed.choices.get('engine', 'fsdp')},{composed.choices.get('optim', 'fsdp')}"
    name = str(composed.get("actor_rollout_ref.actor._target_", "")).rpartition(".")[2]
    return next((engine for start, engine in _ENGINES.items() if name.startswith(start)), "dp")


@functools.cache
def verl_base(root: str, engine: str) -> Composed:
    """Compose verl's own configuration; arguments as `root_of` and `engine_of` return them."""
    if root == "ppo_trainer":
        return compose(Recipe(root), [f"model_engine={engine}"])
    return compose(Recipe(root), [f"{group}={choice}" for group, choice in zip(("engine", "optim"), engine.split(","))])
