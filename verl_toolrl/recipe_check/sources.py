"""Which file of a recipe sets a key, in which line, with which comment.

Hydra composes and forgets; here the files of a recipe are read once more as text. Looked at are the recipe's own file,
what its defaults list names beside it, and the chosen parts of our groups, the last one that sets a key first. verl's
own files are not: what they set is no change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from verl_toolrl.launch.recipes import Composed, Recipe, recipe_folder

__all__ = ["Sources", "Setting", "sources_of"]


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
    files = list(_own_files(folder / f"{recipe.name}.yaml", [folder, recipe_folder()]))
    for group, choice in reversed(list(composed.choices.items())):
        file = recipe_folder() / group.partition("@")[0] / f"{choice}.yaml"
        if file.is_file() and file not in files:
            files.append(file)
    return Sources(files)


def _own_files(file: Path, roots: list[Path]) -> Iterator[Path]:
    """Yield a recipe and the recipes that it builds on, the strongest first."""
    if not file.is_file():
        return
    yield file
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    for name in reversed([item for item in defaults if isinstance(item, str) and item != "_self_"]):
        places = roots if name.startswith("/") else [file.parent, *roots]
        found = next((path for root in places if (path := root / f"{name.lstrip('/')}.yaml").is_file()), None)
        if found is not None:
            yield from _own_files(found, roots)


def _settings(file: Path) -> Iterator[Setting]:
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        yield from _walk(root, "", file, text.splitlines())


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
