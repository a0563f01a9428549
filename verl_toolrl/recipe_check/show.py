"""What a recipe changes against verl's defaults, and with which reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from verl_toolrl.launch.recipes import Composed, Recipe, recipe_folder
from verl_toolrl.recipe_check.sizes import has_critic
from verl_toolrl.recipe_check.sources import Sources, sources_of
from verl_toolrl.recipe_check.verl_base import engine_of, root_of, verl_base

__all__ = ["GROUPS", "Change", "changes", "group_options"]

GROUPS = ("method", "model", "start", "engine", "rollout", "hardware", "mode", "variant", "overlay")
"""The groups that a recipe is composed from, in the order in which a person chooses."""

_SILENT = ("launch", "recipe", "model_engine")  # ours alone; not a change of verl


@dataclass(frozen=True)
class Change:
    """One value that differs from verl's."""

    key: str
    value: Any
    default: Any
    """verl's own value; None for a key that verl's tree has not."""
    is_new: bool
    comment: str
    file: str
    """File of the recipe that sets it, relative to the recipes where it is one of ours."""


def group_options() -> dict[str, list[str]]:
    """Return what each group offers."""
    folders = {group: "backend" if group == "engine" else group for group in GROUPS}
    return {
        group: sorted(path.stem for path in (recipe_folder() / folder).glob("*.yaml"))
        for group, folder in folders.items()
    }


def changes(recipe: Recipe, composed: Composed) -> list[Change]:
    """Return the values that a recipe's files or overrides set and that differ from verl's.

    Values that only follow from another are left out, and so is the critic where none is trained.
    """
    config, base = _resolved(composed), _resolved(verl_base(root_of(composed), engine_of(composed)))
    found = list(_changes(config, base, sources_of(recipe, composed), _resolved(composed, resolve=False)))
    if has_critic(config):
        return found
    return [change for change in found if not change.key.startswith("critic.")]


def _resolved(composed: Composed, resolve: bool = True) -> dict[Any, Any]:
    """The tree as plain dicts; as it is written where something is left to give."""
    import yaml
    from omegaconf import OmegaConf

    if resolve:
        return dict(yaml.safe_load(composed.to_yaml({"VERL_PLATFORM": "cpu"} if composed.on_cpu else {})))
    return dict(OmegaConf.to_container(composed.config, resolve=False))  # type: ignore[arg-type]


def _changes(
    config: Mapping[Any, Any], base: Mapping[Any, Any], sources: Sources, raw: Mapping[Any, Any], prefix: str = ""
) -> Iterator[Change]:
    for name, value in config.items():
        key, default, written = f"{prefix}{name}", base.get(name), raw.get(name)
        if key in _SILENT or (key == "engine" and name not in base):
            continue
        if isinstance(value, Mapping) and value:
            below = default if isinstance(default, Mapping) else {}
            yield from _changes(value, below, sources, written if isinstance(written, Mapping) else {}, f"{key}.")
        elif name not in base or value != default:
            setting = sources.settings.get(key)
            if setting is not None:
                file = setting.file
                shown = file.relative_to(recipe_folder()) if file.is_relative_to(recipe_folder()) else file.name
                yield Change(key, value, default, name not in base, setting.comment, str(shown))
            elif "${" not in str(written):  # no file sets it and it follows from nothing: an override
                yield Change(key, value, default, name not in base, "command line", "")
