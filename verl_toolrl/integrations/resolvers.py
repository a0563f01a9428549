"""Small functions that recipes call: `${toolrl.NAME:...}` in YAML."""

from __future__ import annotations

import os

from omegaconf import OmegaConf

from verl_toolrl.errors import ConfigError

__all__ = ["require_platform", "smollm2_folder"]


def require_platform(name: str, value: object) -> object:
    """Return `value` where `VERL_PLATFORM` is `name`.

    A recipe cannot choose the platform: verl resolves it when it is imported, before any recipe is read. So a recipe
    for the CPU says through this function that it needs the environment variable.

    Raises:
        ConfigError: If the environment does not choose that platform; the text is the line to run.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != name:
        raise ConfigError(
            f"this recipe is for hardware={name}: set VERL_PLATFORM={name} before the command "
            f"(`verl-toolrl train` does it), or choose other hardware"
        )
    return value


def smollm2_folder() -> str:
    """Return the folder of the small chat model from PyPI (see `integrations.smollm2`)."""
    from verl_toolrl.integrations.smollm2 import default_folder

    return str(default_folder())


OmegaConf.register_new_resolver("toolrl.require_platform", require_platform, replace=True)
OmegaConf.register_new_resolver("toolrl.smollm2", smollm2_folder, replace=True)
