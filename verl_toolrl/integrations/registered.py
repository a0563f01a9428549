"""The names that verl's registries know: estimators, reward managers, agent loops, trainers, tool parsers, ...

Read from the source of verl and of this package (the decorators that register), because importing everything that
registers takes 10 seconds. Only a name that is not found there is looked up in the real registry, where a plugin of a
third package, or the module that a recipe loads, may have put it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REGISTRIES", "Registry", "names_in_registry", "names_in_source", "ray_init_parameters"]


@dataclass(frozen=True)
class Registry:
    """One registry of verl."""

    kind: str
    """What its names are called in a message."""
    folders: tuple[str, ...]
    """Files or folders of verl whose decorators register."""
    decorator: str
    """Name of the decorator; it is called with the registered name."""
    live: str
    """`module:attribute` of the real registry, a dict."""


REGISTRIES: dict[str, Registry] = {
    "algorithm.adv_estimator": Registry(
        "advantage estimator",
        ("trainer/ppo/core_algos.py",),
        "register_adv_est",
        "verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY",
    ),
    "actor_rollout_ref.actor.policy_loss.loss_mode": Registry(
        "policy loss",
        ("trainer/ppo/core_algos.py",),
        "register_policy_loss",
        "verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY",
    ),
    "reward.reward_manager.name": Registry(
        "reward manager",
        ("experimental/reward_loop/reward_manager",),
        "register",
        "verl.experimental.reward_loop.reward_manager.registry:REWARD_MANAGER",
    ),
    "actor_rollout_ref.rollout.agent.default_agent_loop": Registry(
        "agent loop",
        ("experimental/agent_loop",),
        "register",
        "verl.experimental.agent_loop.agent_loop:_agent_loop_registry",
    ),
    "actor_rollout_ref.rollout.multi_turn.format": Registry(
        "tool parser",
        ("experimental/agent_loop/tool_parser.py",),
        "ToolParser.register",
        "verl.experimental.agent_loop.tool_parser:ToolParser._registry",
    ),
    "trainer.v1.trainer_mode": Registry(
        "trainer",
        ("trainer/ppo/v1",),
        "register_trainer",
        "verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY",
    ),
    "actor_rollout_ref.rollout.name": Registry(
        "rollout engine",
        ("workers/rollout/replica.py",),
        "RolloutReplicaRegistry.register",
        "verl.workers.rollout.replica:RolloutReplicaRegistry._registry",
    ),
}
"""Key of a recipe -> the registry that its value must be in."""


@functools.cache
def names_in_source(key: str) -> frozenset[str]:
    """Return the names that verl and this package register for a key, without importing either's registrations."""
    registry = REGISTRIES[key]
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    paths = [Path(spec.submodule_search_locations[0]) / folder for folder in registry.folders]
    files = [file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    # Several decorators are called `register`: ours count where verl's package of that registry is imported.
    package = ".".join(registry.live.partition(":")[0].split(".")[:3])
    files += [file for file in sorted(Path(__file__).parent.rglob("*.py")) if f"from {package}" in file.read_text()]
    return frozenset(name for file in files for name in _registered_in(file, registry.decorator))


def _registered_in(file: Path, decorator: str) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    enums = {
        f"{node.name}.{item.targets[0].id}": item.value.value
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.Assign)
        and isinstance(item.targets[0], ast.Name)
        and isinstance(item.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) == decorator:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value
            elif ast.unparse(name) in enums:
                yield str(enums[ast.unparse(name)])


def names_in_registry(key: str, external: str | None = None) -> frozenset[str]:
    """Return the names that are registered for a key once verl, its plugins and a recipe's module are imported.

    Args:
        key: One of `REGISTRIES`.
        external: Modules that the recipe loads (`external_lib`); they may register more.

    Raises:
        ImportError: If verl's module of the registry, or the recipe's, cannot be imported.
    """
    module, _, attributes = REGISTRIES[key].live.partition(":")
    with warnings.catch_warnings(), _without_warnings():  # verl names every engine that is not installed
        importlib.import_module("verl")  # loads the plugins
        for name in str(external).split(",") if external else []:
            importlib.import_module(name.strip())
        found: Any = functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    return frozenset(map(str, found))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    warnings.simplefilter("ignore")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@functools.lru_cache(maxsize=1)
def ray_init_parameters() -> frozenset[str]:
    """Return what `ray.init` takes, read from Ray's source; empty where Ray is not installed."""
    spec = importlib.util.find_spec("ray")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "_private" / "worker.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "init")
    return frozenset(item.arg for node in functions for item in (*node.args.args, *node.args.kwonlyargs))
