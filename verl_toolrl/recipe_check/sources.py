"""Which file of a recipe sets a key, in which line, with which comment.

Hydra composes and forgets; here the files of a recipe are read once more as text. Looked at are the recipe's own file
and what its defaults list names of ours, recipes and chosen parts of groups, the last one that sets a key first. verl's
own files are not: what they set is no change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from verl_toolrl.launch.recipes import Composed, Recipe, recipe_folder

__all__ = ["Sources", "Setting", "sources_of"]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same in C where PyYAML has it."""


@dataclass(frozen=True)
class Setting:
    """One key as one file sets it."""

    key: str
    file: Path
    line: int
    """Counted from 1."""
    comment: str
    """The comment lines above the key and the one behind it; empty where there are none."""


class Sources:
    """The settings of a recipe's files; of several for one key, the one that wins."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        """Strongest first."""
        self.settings: dict[str, Setting] = {}
        for file in files:
            for setting in _settings(file):
                self.settings.setdefault(setting.key, setting)

    def rank(self, key: str) -> int:
        """Return how strong the file is that sets a key: -1 for none (an override), 0 for the recipe itself, ..."""
        setting = self.settings.get(key)
        return self.files.index(setting.file) if setting else -1

    def find(self, key: str) -> Setting | None:
        """Return the setting of a key, of the nearest key above it, or of the first below it."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            found = self.settings.get(".".join(parts[:length]))
            if found is not None:
                return found
        return next((setting for name, setting in self.settings.items() if name.startswith(f"{key}.")), None)


def sources_of(recipe: Recipe, composed: Composed) -> Sources:
    """Return the files of a composed recipe."""
    folder = recipe.folder or recipe_folder()
    own = folder / f"{recipe.name}.yaml"
    roots = [folder, *_search_path(own), recipe_folder()]
    files = list(_own_files(own, roots, composed.choices))
    # Groups of verl with a choice of ours.
    for group, choice in reversed(list(composed.choices.items())):
        files += _own_files(_find(f"{group.partition('@')[0]}/{choice}", roots), roots, composed.choices)
    return Sources(list(dict.fromkeys(files)))


def _search_path(file: Path) -> list[Path]:
    """Folders that a recipe adds to Hydra's search path."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    hydra = content.get("hydra") if isinstance(content, dict) else None
    places = hydra.get("searchpath") or [] if isinstance(hydra, dict) else []
    return [Path(str(place).removeprefix("file://")) for place in places if not str(place).startswith("pkg://")]


def _own_files(file: Path | None, roots: list[Path], choices: Mapping[str, str]) -> Iterator[Path]:
    """Yield a recipe and what its defaults list names that is not verl's, the strongest first."""
    if file is None or not file.is_file():
        return
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = list(content.get("defaults", [])) if isinstance(content, dict) else []
    for item in reversed(defaults if "_self_" in defaults else [*defaults, "_self_"]):
        if item == "_self_":
            yield file
        elif isinstance(item, str):
            yield from _own_files(_find(item, roots if item.startswith("/") else [file.parent, *roots]), roots, choices)
        else:
            # `override` only changes what another line has chosen.
            for group in [str(group) for group in item if not str(group).startswith("override ")]:
                name = group.removeprefix("optional ").lstrip("/")
                path = f"{name.partition('@')[0]}/{choices.get(name, '')}"
                yield from _own_files(_find(path, roots), roots, choices)


def _find(name: str, roots: list[Path]) -> Path | None:
    return next((path for root in roots if (path := root / f"{name.lstrip('/')}.yaml").is_file()), None)


def _settings(file: Path) -> list[Setting]:
    return _settings_of(file, file.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=256)
def _settings_of(file: Path, text: str) -> list[Setting]:
    root = yaml.compose(text, Loader=_Loader)
    return list(_walk(root, "", file, text.splitlines())) if isinstance(root, yaml.MappingNode) else []


def _walk(node: yaml.MappingNode, prefix: str, file: Path, lines: list[str]) -> Iterator[Setting]:
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if key in ("defaults", "hydra"):
            continue
        line = name.start_mark.line
        yield Setting(key, file, line + 1, _comment(lines, line))
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, f"{key}.", file, lines)


def _comment(lines: list[str], line: int) -> str:
    above: list[str] = []
    for text in reversed(lines[:line]):
        if not text.strip().startswith("#") or text.startswith("# @package"):
            break
        above.insert(0, text.strip().lstrip("#").strip())
    _, hash_sign, behind = lines[line].partition(" #")
    return " ".join([*above, *([behind.strip()] if hash_sign else [])])
