"""Recipes by name or path, composed as verl will compose them, without importing verl (0.5 s instead of 5 s).

A name such as `toolrl/quickstart` is found in `verl_toolrl.recipes`, which the plugin puts on Hydra's search path; a
path is a user's own YAML, handed to Hydra as `--config-dir` and `--config-name`. verl's own configuration folder is
located, not imported: whether a recipe runs on the CPU has to be known before verl is.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError, UnknownNameError, nearest

__all__ = [
    "Composed",
    "Recipe",
    "compose",
    "find_recipe",
    "known_recipes",
    "override_key",
    "quote",
    "recipe_folder",
    "verl_configs",
]


@dataclass(frozen=True)
class Recipe:
    """A recipe that exists."""

    name: str
    """What Hydra is asked for with --config-name."""

    folder: Path | None = None
    """Folder of a user's own YAML (--config-dir); None for a recipe of the package or of verl."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of `verl.trainer.main_ppo` that select this recipe."""
        folder = [] if self.folder is None else ["--config-dir", str(self.folder)]
        return [*folder, "--config-name", self.name]

    @property
    def label(self) -> str:
        """The recipe as the user names it on the command line."""
        return self.name if self.folder is None else str(self.folder / f"{self.name}.yaml")


@dataclass(frozen=True)
class Composed:
    """A composed recipe; values are read by dotted key."""

    config: Any
    """omegaconf.DictConfig of the whole trainer."""

    choices: Mapping[str, str] = field(default_factory=dict)
    """Group -> what was chosen of it, in the order of composition."""

    @property
    def hardware(self) -> str | None:
        """Choice of the group `hardware`, where the recipe has that group."""
        return next((choice for group, choice in self.choices.items() if group.rsplit("/")[-1] == "hardware"), None)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a dotted key; `default` where a part of it is missing or cannot be resolved."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            value = OmegaConf.select(self.config, key, default=None)
        except (OmegaConfBaseException, ValueError):
            return default
        return default if value is None else value

    def names(self, key: str, what: str) -> list[str]:
        """Value of a key that holds one text or a list of them; empty where it is missing or null.

        Args:
            key: Dotted key.
            what: What is wanted, for the text of an error: `a file or a list of files`.

        Raises:
            ConfigError: It is something else.
        """
        from omegaconf import OmegaConf

        value = self.get(key, [])
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
            raise ConfigError(f"{key}: {what} is wanted, found {value!r}")
        return found

    @property
    def on_cpu(self) -> bool:
        """Whether the recipe asks for the CPU platform. A machine without a GPU never chooses it by itself."""
        if self.hardware is not None:
            return self.hardware == "cpu"
        from omegaconf import OmegaConf

        # Not resolved: `require_platform` raises while the platform is not chosen.
        raw = OmegaConf.to_container(self.config, resolve=False)
        trainer = raw.get("trainer") if isinstance(raw, dict) else None
        device = str(trainer.get("device")) if isinstance(trainer, dict) else ""
        return device.startswith(("cpu", "${toolrl.require_platform:cpu,"))

    @property
    def entry_point(self) -> str:
        """Module of the trainer: PPO and its kin, or supervised training.

        Raises:
            ConfigError: Supervised training on GPUs, which torchrun starts.
        """
        if "engine" not in self.config or "actor_rollout_ref" in self.config:
            return "verl.trainer.main_ppo"
        if self.on_cpu:
            return "verl_toolrl.integrations.cpu.sft"
        raise ConfigError(
            "supervised training on GPUs is started by torchrun: torchrun -m verl.trainer.sft_trainer --config-name ..."
        )

    def to_yaml(self, environment: Mapping[str, str]) -> str:
        """The configuration with its interpolations resolved, where all of them can be.

        Args:
            environment: Variables that the trainer will have; recipes look at them while they are resolved.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        before = dict(os.environ)
        os.environ.update(environment)
        try:
            return OmegaConf.to_yaml(self.config, resolve=True)
        except (OmegaConfBaseException, ValueError):
            return OmegaConf.to_yaml(self.config)
        finally:
            os.environ.clear()
            os.environ.update(before)


def recipe_folder() -> Path:
    """The recipes of this package."""
    return Path(str(importlib.resources.files("verl_toolrl.recipes")))


def known_recipes() -> list[str]:
    """Names of the recipes of this package: the YAML files that describe themselves under `recipe`."""
    import yaml

    names = []
    for path in sorted(recipe_folder().rglob("*.yaml")):
        name = path.relative_to(recipe_folder()).with_suffix("").as_posix()
        content = yaml.safe_load(path.read_text())
        # Parts (a hardware group, a shared base) do not say what they reproduce.
        if isinstance(content, dict) and "recipe" in content:
            names.append(name)
    return names


def verl_configs() -> Path:
    """verl's own configuration folder.

    Raises:
        ConfigError: If verl is not installed.
    """
    # find_spec of a top-level package locates it and does not import it.
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("verl is not installed beside verl-toolrl: pip install 'verl-toolrl[verl]', or `make setup`")
    return Path(spec.submodule_search_locations[0]) / "trainer" / "config"


def find_recipe(text: str) -> Recipe:
    """Find a recipe by name or path.

    Raises:
        UnknownNameError: No recipe of this name; the text names the nearest one.
        ConfigError: The path is not a YAML file.
    """
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file() and path.suffix == ".yaml":
            if (verl_configs() / path.name).is_file():
                raise ConfigError(f"{text}: Hydra would take verl's own configuration of that name: rename the file")
            return Recipe(name=path.stem, folder=path.resolve().parent)
        if path.suffix == ".yml" and path.is_file():
            raise ConfigError(f"{text}: Hydra reads files ending in .yaml only: rename it")
        if not (recipe_folder() / path).is_file():
            raise ConfigError(f"{text} is not a file{nearest(path.with_suffix('').as_posix(), known_recipes())}")
        text = path.with_suffix("").as_posix()
    if (recipe_folder() / f"{text}.yaml").is_file() or (verl_configs() / f"{text}.yaml").is_file():
        return Recipe(name=text)
    raise UnknownNameError("recipe", text, known_recipes())


def compose(recipe: Recipe, overrides: list[str]) -> Composed:
    """Compose a recipe with overrides, as `verl.trainer.main_ppo` will.

    Raises:
        ConfigError: An override is malformed or names a key that does not exist, or the recipe itself is wrong.
    """
    try:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf import OmegaConf, open_dict
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as err:
        raise ConfigError("hydra-core is not installed: it comes with verl (pip install 'verl-toolrl[verl]')") from err

    # What the plugin does in the trainer: the search path, and functions that recipes call while they are resolved.
    import verl_toolrl.integrations.hydra_searchpath
    import verl_toolrl.integrations.resolvers  # noqa: F401

    try:
        with _searched(recipe.folder), initialize_config_dir(str(verl_configs()), version_base=None):
            config = hydra_compose(recipe.name, overrides, return_hydra_config=True)
    except (
        HydraException,
        OmegaConfBaseException,
        ConfigError,
        YAMLError,
        ValueError,
    ) as err:  # model=null: ValueError
        raise ConfigError(f"{recipe.label}: {_explain(err, recipe, overrides)}") from err
    choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_readonly(config, True)
    return Composed(config, choices)


@contextlib.contextmanager
def _searched(folder: Path | None) -> Iterator[None]:
    """Put a folder on Hydra's search path, as `--config-dir` does."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ConfigDir(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if folder is not None and active:
                search_path.append(provider="command-line", path=f"file://{folder}")

    active = True
    Plugins.instance().register(ConfigDir)
    try:
        yield
    finally:
        active = False  # Hydra has no way to take a plugin back


def quote(value: str) -> str:
    """Quote a text for Hydra's override grammar where it needs it."""
    if re.fullmatch(r"[\w./:+-]+", value, flags=re.ASCII):
        return value
    # A backslash stands for itself unless a quote follows (Hydra 1.3, override grammar, "Quoted values").
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def _explain(err: Exception, recipe: Recipe, overrides: list[str]) -> str:
    """Hydra's error in one sentence, with the nearest valid key where a key is unknown."""
    from hydra.errors import OverrideParseException

    if isinstance(err, OverrideParseException):
        return f"{err.override!r} is no override: key=value, +key=value (a new key) or ~key is wanted"
    text = " ".join(line.strip() for line in str(err).splitlines() if line.strip())
    text = re.sub(r"Error merging override (\S+) .*?(?=[A-Z])", r"\1: ", text)
    text = re.split(r" full_key:| Config search path:", text)[0]
    if "not in struct" in str(err) or "not in struct" in str(err.__cause__):
        # `rollout=sglang` is part of the text where `actor_rollout_ref.rollout.n=4` is meant.
        key = max((key for key in map(override_key, overrides) if key in text), key=len, default="")
        if key:
            guess = nearest(key, set(_keys(compose(recipe, []).config)))
            return f"no configuration key {key!r}{guess or f'; a new key is added with +{key}=...'}"
    return text or type(err).__name__


def override_key(override: str) -> str:
    """Key of an override: `trainer.logger` of `+trainer.logger=[console]`."""
    return override.partition("=")[0].lstrip("+~")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config, DictConfig) or config._is_none() or config._is_missing():
        return
    for name in map(str, config):
        key = f"{prefix}{name}"
        yield key
        if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
            yield from _keys(config[name], f"{key}.")
