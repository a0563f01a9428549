"""Small functions that recipes call: `${toolrl.NAME:...}` in YAML."""

from __future__ import annotations

import math
import os
import sys

from omegaconf import OmegaConf

from verl_toolrl.errors import ConfigError

__all__ = [
    "cpu_dtype",
    "divisor",
    "require_platform",
    "smollm2_folder",
    "tiny_model_folder",
    "token_budget",
    "unsupported",
]


def require_platform(name: str, value: object) -> object:
    """Return `value` where `VERL_PLATFORM` is `name`.

    A recipe cannot choose the platform: verl resolves it when it is imported, before any recipe is read. So a recipe
    for the CPU says through this function that it needs the environment variable.

    Raises:
        ConfigError: If the environment does not choose that platform; the text is the line to run. Where verl itself is
            the program, the same text as a SystemExit.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != name:
        text = (
            f"this recipe is for hardware={name}: set VERL_PLATFORM={name} before the command "
            f"(`verl-toolrl train` does it), or choose other hardware"
        )
        if _verl_is_the_program():
            # Anything else would reach the user inside a traceback of omegaconf.
            raise SystemExit(text)
        raise ConfigError(text)
    return value


def _verl_is_the_program() -> bool:
    """Whether this process is `python -m verl.trainer.main_ppo ...` or another of verl's commands."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("verl.")


def cpu_dtype() -> str:
    """Return the number format that this machine's processor is fast in (see `integrations.cpu.precision`)."""
    from verl_toolrl.integrations.cpu.precision import fast_dtype

    return fast_dtype()


def smollm2_folder() -> str:
    """Return the folder of the small chat model from PyPI (see `integrations.smollm2`)."""
    from verl_toolrl.integrations.smollm2 import default_folder

    return str(default_folder())


def tiny_model_folder() -> str:
    """Return the folder of the stand-in model, written there if it is missing (see `integrations.tiny_model`)."""
    from verl_toolrl.integrations.tiny_model import write_tiny_model

    return str(write_tiny_model())


def unsupported(reason: str) -> None:
    """Refuse a combination of choices that composes but cannot run.

    Raises:
        ConfigError: Always, with the reason.
    """
    raise ConfigError(reason)


def divisor(wanted: int, *sizes: int) -> int:
    """Return the largest divisor of `wanted` that divides all `sizes`: devices a layer can be split over."""
    return math.gcd(int(wanted), *map(int, sizes))


def token_budget(tokens: int, *lengths: int) -> int:
    """Return `tokens`, or the sum of `lengths` where that is more: a micro batch must hold the longest row.

    Raises:
        ConfigError: If one of them is no integer.
    """
    if not all(isinstance(length, int) for length in (tokens, *lengths)):
        raise ConfigError(f"data.max_prompt_length and data.max_response_length must be integers, got {list(lengths)}")
    return max(tokens, sum(lengths))


OmegaConf.register_new_resolver("toolrl.cpu_dtype", cpu_dtype, replace=True)
OmegaConf.register_new_resolver("toolrl.divisor", divisor, replace=True)
OmegaConf.register_new_resolver("toolrl.unsupported", unsupported, replace=True)
OmegaConf.register_new_resolver("toolrl.tiny_model", tiny_model_folder, replace=True)
OmegaConf.register_new_resolver("toolrl.token_budget", token_budget, replace=True)
OmegaConf.register_new_resolver("toolrl.require_platform", require_platform, replace=True)
OmegaConf.register_new_resolver("toolrl.smollm2", smollm2_folder, replace=True)
