"""Keys of a composed recipe against verl's own composed tree and the fields of verl's dataclasses.

A key is known if verl's tree has it, if it is a field of the dataclass that its node is built as, or if the node is
open: one that verl leaves empty for whatever an engine or a library takes, or one of ours. Anything else Hydra accepts
from a file without a word, and either nothing reads it or a dataclass refuses it when the run has started.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_toolrl.integrations.registered import ray_init_parameters
from verl_toolrl.integrations.verl_config import config_class, field_hints, nested_class
from verl_toolrl.recipe_check.finding import Finding, did_you_mean
from verl_toolrl.recipe_check.own_nodes import OWN_NODES

__all__ = ["MOVED", "OPEN", "Value", "changed_values", "unknown_keys"]

OPEN: dict[str, str] = {
    "reward.reward_kwargs": "options of the reward; checked by building it",
    "reward.custom_reward_function.reward_kwargs": "arguments of the function",
    "algorithm.toolrl": "options of our estimators; checked by reading them",
    "trainer.toolrl": "options of our trainers; checked by name",
    "actor_rollout_ref.rollout.custom": "verl's own extension point",
    "ray_kwargs.ray_init.runtime_env": "passed to Ray",
}
"""Nodes that take any key here, and who reads them."""

MOVED: dict[str, str] = {
    "actor_rollout_ref.rollout.skip": "skip.rollout",
    "actor_rollout_ref.rollout.skip_rollout": "skip.rollout.enable",
    "actor_rollout_ref.rollout.multi_turn.max_turns": "actor_rollout_ref.rollout.multi_turn.max_assistant_turns",
    "actor_rollout_ref.rollout.multi_turn.tool_kwargs": "actor_rollout_ref.rollout.multi_turn.tool_config_path",
    "data.continuous_token": "nothing: it is always on since 0.9.1",
    "data.return_multi_modal_data": "data.return_multi_modal_inputs",
    "trainer.critic_lr": "critic.optim.lr",
    "algorithm.kl_coef": "algorithm.kl_ctrl.kl_coef",
}
"""Key of an earlier verl -> where it went."""


_LEGACY = ("reward_model", "custom_reward_function", "sandbox_fusion")  # in verl's tree and read by nothing


@dataclass(frozen=True)
class Value:
    """A value that differs from verl's."""

    key: str
    value: Any
    default: Any
    """verl's value; None where it has none."""
    hint: Any
    """Type of the dataclass field; None where verl has no dataclass for the node."""
    has_default: bool


def unknown_keys(config: Mapping[str, Any], base: Mapping[str, Any], used: set[str]) -> Iterator[Finding]:
    """Find the keys that nothing reads.

    Args:
        config: The composed recipe as plain dicts.
        base: verl's own tree with the same engine.
        used: Keys that an interpolation of the recipe reads.
    """
    names = [key for key in sorted(_all_keys(base)) if key.split(".")[0] not in _LEGACY]
    for path, node, known, cls in _nodes(config, base):
        for name in node:
            key = f"{path}.{name}" if path else str(name)
            # A dataclass of verl refuses what it does not know, even if something reads it before.
            refused = cls is not None and not _is_own(path)
            if str(name) in known or key in OPEN or key in OWN_NODES or (not refused and _is_used(key, used)):
                continue
            text = _say(key, str(name), known, cls if refused else None, names)
            yield Finding(key, text, is_error=not _read(cls, str(name), known))


def changed_values(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Value]:
    """Yield the values of known keys that differ from verl's."""
    for path, node, _, cls in _nodes(config, base):
        below = _at(base, path)
        hints = field_hints(cls) if cls else {}
        for name, value in node.items():
            key = f"{path}.{name}" if path else str(name)
            has_default = isinstance(below, Mapping) and name in below
            default = below[name] if has_default else None
            if name == "_target_" or (not has_default and name not in hints) or _same(value, default, has_default):
                continue
            # A mapping is looked at key by key, unless verl's value is none.
            if not isinstance(value, Mapping) or (has_default and not isinstance(default, Mapping | None)):
                yield Value(key, value, default, hints.get(name), has_default)


def _same(value: Any, default: Any, has_default: bool) -> bool:
    # Python holds 1 and true for equal; verl's `is True` does not.
    return has_default and value == default and isinstance(value, bool) == isinstance(default, bool)


def _nodes(
    config: Mapping[str, Any], base: Mapping[str, Any], path: str = "", hint: Any = None
) -> Iterator[tuple[str, Mapping[str, Any], set[str], type | None]]:
    """Yield every mapping that is not open: its key, itself, the keys it may have, and its dataclass."""
    below = _at(base, path)
    cls = OWN_NODES.get(path) or _class_of(config, hint)
    known = set(below) if isinstance(below, Mapping) else set()
    hints = field_hints(cls) if cls else {}
    if cls:
        known |= set(hints) | (set() if _is_own(path) else {"_target_"})
    if path == "ray_kwargs.ray_init":
        known |= ray_init_parameters()
    if path and not known:
        return
    yield path, config, {str(name) for name in known}, cls
    for name, value in config.items():
        key = f"{path}.{name}" if path else str(name)
        described = str(name) in {str(item) for item in known} or key in OWN_NODES
        if isinstance(value, Mapping) and described and key not in OPEN:
            yield from _nodes(value, base, key, hints.get(name))


def _is_own(path: str) -> bool:
    return any(path == node or path.startswith(f"{node}.") for node in OWN_NODES)


def _class_of(node: Mapping[str, Any], hint: Any) -> type | None:
    target = node.get("_target_")
    if target:
        try:
            return config_class(str(target))
        except (ImportError, AttributeError, ValueError):
            return None
    return nested_class(hint) if hint is not None else None


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for part in path.split(".") if path else []:
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _all_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _all_keys(value, f"{prefix}{name}.")


def _is_used(key: str, used: set[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in used)


def _read(cls: type | None, name: str, known: set[str]) -> bool:
    """Whether verl asks a node without a dataclass for a key of this name that its YAML does not have."""
    return cls is None and not did_you_mean(name, known) and name in _asked_for()


@functools.lru_cache(maxsize=1)
def _asked_for() -> frozenset[str]:
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    text = "\n".join(path.read_text(errors="ignore") for path in root.rglob("*.py"))
    return frozenset(re.findall(r"config[\w.\[\]\"']*\.get\(\s*[\"'](\w+)[\"']", text))


def _say(key: str, name: str, known: set[str], cls: type | None, names: list[str]) -> str:
    moved = next((new for old, new in MOVED.items() if key == old or key.startswith(f"{old}.")), None)
    if moved is not None:
        return f"is gone from verl: it is now {moved}"
    if _is_own(key.rpartition(".")[0]):
        return f"nothing reads it{did_you_mean(name, known)}; known: {', '.join(sorted(known))}"
    if name in ENGINE_NODES:
        return ENGINE_NODES[name]
    guess = did_you_mean(name, known)
    if not guess:
        # The right name in the wrong place.
        elsewhere = [other for other in names if other.rpartition(".")[2] == name]
        near = min(elsewhere, key=lambda other: _distance(other, key), default=None)
        guess = f"; a key of this name is {near!r}" if near else did_you_mean(key, names)
    if cls is not None:
        return f"is no field of verl's {cls.__name__}, which refuses it when the run starts{guess}"
    return f"is not in verl's configuration and nothing reads it{guess}"


ENGINE_NODES = {
    "fsdp_config": "belongs to engine=fsdp, and this recipe is composed with another engine",
    "fsdp": "belongs to engine=fsdp, and this recipe is composed with another engine",
    "megatron": "belongs to engine=megatron, and this recipe is composed with another engine",
}
"""Nodes that only one engine has, and what to say where they meet another."""


def _distance(other: str, key: str) -> tuple[int, bool, int]:
    """Order of keys of the same name by how likely they are meant: neighbours, then the trainer's, then the short."""
    shared = 0
    for left, right in zip(other.split("."), key.split(".")):
        if left != right:
            break
        shared += 1
    return -shared, not other.startswith("trainer."), other.count(".")
