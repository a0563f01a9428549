"""Rewards that a user writes as a plain function.

    def score(*, response, ground_truth, tools=None, step=0, total_steps=None):
        return 1.0 if "please" in response else 0.0

The function takes the arguments it names. It returns a number, a mapping of components (the score is their sum), or a
`Reward`. It is named by where it is, `package.module:score` or `path/to/file.py:score`, so that the configured reward
pickles, and imported where it is first called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.rewards.base import Reward

__all__ = ["FunctionReward", "load_object"]

_ARGUMENTS = ("response", "ground_truth", "tools", "step", "total_steps")


@lru_cache(maxsize=256)
def load_object(path: str) -> Any:
    """Import `package.module:name` or `path/to/file.py:name`.

    Raises:
        ConfigError: If the module, file or name does not exist.
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name:
        raise ConfigError(f"{path!r}: wanted package.module:name or path/to/file.py:name")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (ImportError, OSError) as err:
        raise ConfigError(f"{path!r}: cannot import {module_name!r} ({err})") from err
    if not hasattr(module, name):
        raise ConfigError(f"{path!r}: {module_name!r} has no {name!r}{nearest(name, vars(module))}")
    return getattr(module, name)


def _load_file(path: Path) -> Any:
    path = path.resolve()
    # One name a file, so that two files of the same stem do not meet, and objects of the file pickle in this process.
    name = f"verl_toolrl_user_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def accepted_arguments(function: Callable[..., Any], where: str) -> tuple[str, ...]:
    """Return which of our arguments a function takes.

    Raises:
        ConfigError: If it asks for an argument that we do not have, or does not take `response`.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return _ARGUMENTS
    for parameter in parameters:
        if parameter.name not in _ARGUMENTS and parameter.default is parameter.empty:
            hint = nearest(parameter.name, _ARGUMENTS)
            raise ConfigError(f"{where}: asks for {parameter.name!r}{hint}; we give {', '.join(_ARGUMENTS)}")
    names = tuple(parameter.name for parameter in parameters if parameter.name in _ARGUMENTS)
    if "response" not in names:
        raise ConfigError(f"{where}: must take 'response'; we give {', '.join(_ARGUMENTS)}")
    return names


@dataclass(frozen=True)
class FunctionReward:
    """A user's function as a reward; component `function`, or those that it returns."""

    path: str
    """Where the function is."""
    at_end: bool = False
    """Tell the function that every step is the last one: what it gives then does not follow its schedule."""

    def __post_init__(self) -> None:
        accepted_arguments(load_object(self.path), self.path)

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Call the function; see `RewardFunction`.

        Raises:
            ConfigError: If it returns anything but finite numbers.
        """
        given = {
            "response": response,
            "ground_truth": ground_truth,
            "tools": tools,
            "step": (total_steps or 0) if self.at_end else step,
            "total_steps": total_steps,
        }
        function = load_object(self.path)
        answer = function(**{name: given[name] for name in accepted_arguments(function, self.path)})
        if isinstance(answer, Reward):
            return answer
        parts = dict(answer) if isinstance(answer, Mapping) else {"function": answer}
        for name, value in parts.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{self.path}: {name} must be a finite number, got {value!r}")
        components = {str(name): float(value) for name, value in parts.items()}
        return Reward(math.fsum(components.values()), components)

    def unscheduled(self) -> FunctionReward:
        """The same function at the end of the run, where it asks for the step at all."""
        asks = "step" in accepted_arguments(load_object(self.path), self.path)
        return replace(self, at_end=True) if asks else self
