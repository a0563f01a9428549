"""Checks one recipe: composes it as verl will, and compares what comes out with verl's own tree."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import Composed, Recipe, compose, override_key
from verl_toolrl.recipe_check.finding import Finding, Report
from verl_toolrl.recipe_check.sources import Sources, sources_of
from verl_toolrl.recipe_check.verl_base import engine_of, root_of, verl_base

__all__ = ["check_composed", "check_recipe", "combinations"]


def combinations(recipe: Recipe) -> list[list[str]]:
    """Return the overrides for every engine and rollout that a recipe has as groups; one empty list where it has none.

    Engines that `recipes/unsupported` refuses for the recipe's hardware are left out.
    """
    composed = compose(recipe, [])
    if "sft_backend" in composed.choices:
        return [[f"engine={engine}"] for engine in _options("sft_backend")]
    if not {"engine", "backend", "rollout"} <= composed.choices.keys():
        return [[]]
    refused = _options("unsupported/engine")
    engines = [engine for engine in _options("backend") if f"{composed.hardware}_{engine}" not in refused]
    rollouts = _options("rollout")
    return [[f"engine={engine}", f"rollout={rollout}"] for engine, rollout in itertools.product(engines, rollouts)]


def _options(group: str) -> list[str]:
    from verl_toolrl.launch.recipes import recipe_folder

    return sorted(path.stem for path in (recipe_folder() / group).glob("*.yaml"))


def check_recipe(recipe: Recipe, overrides: list[str]) -> Report:
    """Check a recipe in one combination of choices.

    Never raises for what the recipe says: a recipe that does not compose is one finding.
    """
    try:
        composed = compose(recipe, overrides)
    except ConfigError as err:
        finding = Finding("", str(err).removeprefix(f"{recipe.label}: "), file=_own_file(recipe))
        return Report(recipe.label, overrides, [finding])
    return check_composed(recipe, composed, overrides)


def check_composed(recipe: Recipe, composed: Composed, overrides: list[str]) -> Report:
    """Check a recipe that was composed with these overrides."""
    report = Report(recipe.label, overrides)
    sources = sources_of(recipe, composed)
    given = [override_key(override) for override in overrides]
    found = _without_repeats(_check(composed, sources))
    report.findings = [_placed(finding, recipe, sources, given) for finding in found]
    return report


def _check(composed: Composed, sources: Sources) -> Iterator[Finding]:
    root = root_of(composed)
    if root == "sft_trainer_engine" and not {"engine", "model", "optim"} <= set(composed.config):
        yield Finding("defaults", "builds on neither /ppo_trainer nor /sft_trainer_engine, which the trainers read")
        return
    config, broken = _resolved(composed)
    errors = [finding for finding in broken if finding.is_error]
    yield from broken
    yield from _left_to_give(composed, [finding.key for finding in broken])
    if config is None or errors:
        return
    base = _verl_tree(root, engine_of(composed))
    if "engine" in composed.choices and root == "ppo_trainer":
        yield from _inert_engine(config.pop("engine"), composed.choices["engine"])
    yield from _compare(config, base, _plain(composed.config), root, sources)


def _compare(
    config: Mapping[str, Any], base: Mapping[str, Any], raw: Mapping[str, Any], root: str, sources: Sources
) -> Iterator[Finding]:
    from verl_toolrl.recipe_check.dataclasses import RL_NODES, SFT_NODES, check_dataclasses
    from verl_toolrl.recipe_check.names import check_algorithm, check_names, check_reward, check_rollout, check_trainer
    from verl_toolrl.recipe_check.sizes import check_sft_sizes, check_sizes, has_critic
    from verl_toolrl.recipe_check.tree import changed_values, unknown_keys
    from verl_toolrl.recipe_check.values import check_choices, check_dead, check_type

    wrong: list[Finding] = list(unknown_keys(config, base, _used_keys(raw)))
    for value in changed_values(config, base):
        found = check_dead(value) or check_type(value, supervised=root == "sft_trainer_engine")
        wrong += [found] if found else check_choices(value)
    yield from wrong
    keys = [finding.key for finding in wrong if finding.is_error]
    yield from check_names(config, base)
    if root == "ppo_trainer":
        yield from check_reward(config)
        yield from check_algorithm(config)
        yield from check_rollout(config)
        yield from check_trainer(config)
    if not any(_is_figure(finding) for finding in wrong):
        sizes = check_sizes if root == "ppo_trainer" else check_sft_sizes
        yield from sizes(config, base, sources.rank)
    nodes: tuple[str, ...] = RL_NODES if root == "ppo_trainer" else SFT_NODES
    if root == "ppo_trainer" and not has_critic(config):
        nodes = tuple(node for node in nodes if node != "critic")
    yield from check_dataclasses(config, base, nodes, lambda node: any(key.startswith(node) for key in keys))


def _is_figure(finding: Finding) -> bool:
    return "is wanted" in finding.message and "integer" in finding.message


def _inert_engine(node: Mapping[str, Any], choice: str) -> Iterator[Finding]:
    """Find values under `engine`: which engine is chosen is read, the content of verl's group is not."""
    own = _verl_group("engine", choice)
    place = "actor_rollout_ref.actor." + ("megatron" if choice == "megatron" else "fsdp_config")
    for name, value in node.items():
        if name not in own or value != own[name]:
            yield Finding(
                f"engine.{name}", f"nothing reads it: its place is {place}.{name} (and that of ref and critic)"
            )


def _resolved(composed: Composed) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Resolve interpolations: plain dicts, and findings for what is left to give or cannot be resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    findings: list[Finding] = []
    config = composed.config.copy()
    OmegaConf.set_readonly(config, False)
    with _platform(composed):
        while True:
            try:
                return OmegaConf.to_container(config, resolve=True), findings  # type: ignore[return-value]
            except InterpolationToMissingValueError as err:
                key = str(err.full_key)
                source = re.search(r"Missing mandatory value: ([\w.]+)", str(err))
                findings.append(_left(source[1] if source else key))
                _set(config, key, "???")
            except (OmegaConfBaseException, ValueError) as err:
                key = str(getattr(err, "full_key", "") or "")
                text = str(err).partition("while resolving interpolation: ")[2] or str(err)
                findings.append(Finding(key, text.splitlines()[0]))
                if not key:
                    return None, findings
                _set(config, key, None)


_MANDATORY = ("actor_rollout_ref.", "critic.", "data.", "launch.", "model.", "trainer.")
"""Where a missing value matters to every run; others belong to what is switched off."""


def _left(key: str, *, is_left: bool = True) -> Finding:
    return Finding(key, "must be given", is_error=False, is_left=is_left)


def _left_to_give(composed: Composed, said: list[str]) -> Iterator[Finding]:
    from verl_toolrl.recipe_check.sizes import has_critic

    raw = _plain(composed.config)
    for key in _missing_keys(raw):
        if key.startswith(_MANDATORY) and key not in said:
            yield _left(key, is_left=has_critic(raw) or not key.startswith("critic."))


def _missing_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _missing_keys(value, f"{prefix}{name}.")
        elif value == "???":
            yield f"{prefix}{name}"


def _set(config: Any, key: str, value: Any) -> None:
    """Replace a value without resolving the one that stands there, as OmegaConf.update would."""
    from omegaconf import OmegaConf

    *path, name = key.split(".")
    node = OmegaConf.select(config, ".".join(path)) if path else config
    node._set_item_impl(name, value)


@contextlib.contextmanager
def _platform(composed: Composed) -> Iterator[None]:
    """Have the environment that `verl-toolrl train` gives a recipe for the CPU."""
    before = os.environ.get("VERL_PLATFORM")
    # on_cpu reads resolved values; a recipe may ask for the platform in the value that says so.
    if composed.on_cpu or "toolrl.require_platform:cpu" in str(_plain(composed.config)):
        os.environ["VERL_PLATFORM"] = "cpu"
    try:
        yield
    finally:
        os.environ.pop("VERL_PLATFORM", None)
        if before is not None:
            os.environ["VERL_PLATFORM"] = before


@functools.cache
def _verl_tree(root: str, engine: str) -> dict[str, Any]:
    """verl's own configuration with an engine, resolved."""
    tree, _ = _resolved(verl_base(root, engine))
    assert tree is not None
    return tree


@functools.cache
def _verl_group(group: str, choice: str) -> dict[str, Any]:
    import yaml

    from verl_toolrl.launch.recipes import verl_configs

    return dict(yaml.safe_load((verl_configs() / group / f"{choice}.yaml").read_text()))


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return dict(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


def _used_keys(raw: Any) -> set[str]:
    """Keys that an interpolation reads."""
    return set(re.findall(r"\$\{(?:oc\.select:)?([\w.]+)[},]", str(raw))) | set(
        re.findall(r"\$\{toolrl\.\w+:[^}]*?\$\{([\w.]+)\}", str(raw))
    )


def _without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a key and message."""
    kept: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        kept.setdefault((finding.key, finding.message), finding)
    return list(kept.values())


def _placed(finding: Finding, recipe: Recipe, sources: Sources, given: list[str]) -> Finding:
    """Say where a finding's key is set.

    Args:
        given: Keys of the overrides.
    """
    key = finding.key
    if key and any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in given):
        return dataclasses.replace(finding, file="command line", line=0)
    setting = sources.find(finding.key) if finding.key else None
    if setting is None:
        return dataclasses.replace(finding, file=_own_file(recipe), line=0)
    return dataclasses.replace(finding, file=_short(setting.file), line=setting.line)


def _own_file(recipe: Recipe) -> str:
    return recipe.label


def _short(file: Path) -> str:
    """A path relative to the working directory, or to our recipes."""
    from verl_toolrl.launch.recipes import recipe_folder

    for root, prefix in ((Path.cwd(), ""), (recipe_folder(), "recipes/")):
        with contextlib.suppress(ValueError):
            return f"{prefix}{file.relative_to(root)}"
    return str(file)
