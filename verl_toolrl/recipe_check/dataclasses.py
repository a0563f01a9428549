"""The dataclasses that verl builds out of a recipe, built: with a stand-in for the model, without any engine.

What cannot be built in 0.9.1 is left out: `RewardManagerConfig` (always fails), `AlgoConfig` (never built by the V1
trainer, which may hold more keys), `ref` (completed by the worker first), `data` and `trainer` (no dataclass).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from verl_toolrl.integrations.verl_config import build
from verl_toolrl.recipe_check.finding import Finding
from verl_toolrl.recipe_check.sizes import select

__all__ = ["check_dataclasses"]

RL_NODES = ("actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model", "critic", "skip")
SFT_NODES = ("model", "engine", "optim", "checkpoint")


def check_dataclasses(
    config: Mapping[str, Any], base: Mapping[str, Any], nodes: tuple[str, ...], skip: Callable[[str], bool]
) -> Iterator[Finding]:
    """Build the nodes that a recipe changes.

    Args:
        config: The composed recipe, resolved.
        base: verl's own tree, resolved.
        nodes: Keys of the nodes to build.
        skip: Tells of a node that it is known to be wrong, so that building it says nothing new.
    """
    for key in nodes:
        node = select(config, key)
        if not isinstance(node, Mapping) or node == select(base, key) or skip(key):
            continue
        if _has_missing(node):  # said elsewhere
            continue
        try:
            built = build(node)
            _validate(built, key, config)
        except Exception as err:  # verl's dataclasses raise whatever comes: AssertionError, ValueError, TypeError, ...
            text = _sentence(err)
            # verl's own configurations leave a micro-batch size to the command line, and so may a recipe.
            is_left = "Please set at least one of" in text
            message = f"verl's {_class_name(node)} refuses it: {text}"
            yield Finding(_place(key, node, text), message, is_error=not is_left, is_left=is_left)


def _has_missing(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(_has_missing(value) for value in node.values())
    return isinstance(node, str) and node == "???"


def _validate(built: Any, key: str, config: Mapping[str, Any]) -> None:
    """Run the check that verl's entry point runs on actor and critic (utils/config.py: validate_config)."""
    devices = (select(config, "trainer.nnodes") or 1) * (select(config, "trainer.n_gpus_per_node") or 1)
    batch = select(config, "data.train_batch_size")
    if key == "actor_rollout_ref.actor":
        built.validate(devices, batch, select(config, "actor_rollout_ref.model"))
    elif key == "critic" and hasattr(built, "validate"):
        built.validate(devices, batch)


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2]


def _place(key: str, node: Mapping[str, Any], text: str) -> str:
    """The key below a node that an error speaks of: the longest name in its text that is a key there."""
    words = set(re.findall(r"\w+", text))
    named = [path for path in _keys(node) if path.rpartition(".")[2] in words]
    return f"{key}.{max(named, key=lambda path: len(path.rpartition('.')[2]))}" if named else key


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")


def _sentence(err: Exception) -> str:
    cause: BaseException = err
    while cause.__cause__ is not None:  # hydra wraps what a dataclass raises
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:  # a bare assert: its line says what is wanted
        lines = [frame.line for frame in traceback.extract_tb(cause.__traceback__)[-1:] if frame.line]
    return f"{type(cause).__name__}: {' '.join(lines[:2])}"
