"""verl's configuration dataclasses: their fields, the types of these, and building one from a node of a recipe.

A node with `_target_` is built as that dataclass when a run has started, and a key that is no field of it ends the run
there. The classes are verl's own, loaded without what verl imports beside them where verl is not imported yet
(`light_verl`); where that fails, or a class of somebody else is asked for, verl is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import logging
import typing
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from verl_toolrl.integrations.light_verl import light_verl

__all__ = ["build", "config_class", "field_hints", "nested_class"]

logger = logging.getLogger(__name__)


@functools.cache
def _is_light() -> bool:
    """Whether verl's configuration can be loaded lightly."""
    try:
        with light_verl():
            importlib.import_module("verl.workers.config")
    except Exception as err:  # another verl may do at import whatever it likes
        logger.info(f"verl's configuration needs verl's libraries: {type(err).__name__}: {err}")
        return False
    return True


@contextlib.contextmanager
def _verl(light: bool = True) -> Iterator[None]:
    """Have verl's configuration modules importable."""
    if light and _is_light():
        with light_verl():
            yield
    else:
        importlib.import_module("verl.workers.config")
        yield


@functools.cache
def config_class(target: str) -> type | None:
    """Return the dataclass that a `_target_` names; None where it is no dataclass.

    Raises:
        ImportError, AttributeError: If there is no such name.
    """
    module, _, name = target.rpartition(".")
    with _verl(light=module.startswith("verl.")):
        found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


@functools.cache
def field_hints(cls: type) -> dict[str, Any]:
    """Return the fields of a dataclass with their types; `Any` where a type cannot be resolved."""
    try:
        with _verl(light=cls.__module__.startswith(("verl.", "verl_toolrl."))):
            hints = typing.get_type_hints(cls)
    except (NameError, TypeError):
        hints = {}
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls) if field.init}


def nested_class(hint: Any) -> type | None:
    """Return the dataclass in a type such as `X`, `Optional[X]` or `X | None`."""
    for option in (hint, *typing.get_args(hint)):
        if inspect.isclass(option) and dataclasses.is_dataclass(option):
            return option
    return None


def build(node: Mapping[str, Any]) -> Any:
    """Build the dataclass of a node as verl does, every model in it replaced by a stand-in: nothing is downloaded.

    Args:
        node: Plain values with `_target_` and without interpolations.

    Raises:
        Exception: Whatever the dataclass finds wrong; verl raises AssertionError, ValueError, TypeError and others.
    """
    from omegaconf import OmegaConf

    light = _is_light() and not _needs_all_of_verl(node)
    with warnings.catch_warnings(), _verl(light):
        warnings.simplefilter("ignore")
        convert = importlib.import_module("verl.utils.config").omega_conf_to_dataclass
        return convert(OmegaConf.create(_with_stand_in(node, light)))


def _needs_all_of_verl(node: Mapping[str, Any]) -> bool:
    """Whether a node names a class of somebody else, or overrides something inside a model's configuration."""
    override = node.get("override_config") or {}
    return (
        not str(node.get("_target_", "verl.")).startswith("verl.")
        or any(isinstance(value, Mapping) for value in override.values())
        or any(_needs_all_of_verl(value) for value in node.values() if isinstance(value, Mapping))
    )


def _with_stand_in(node: Mapping[str, Any], light: bool) -> dict[str, Any]:
    copy = {key: _with_stand_in(value, light) if isinstance(value, Mapping) else value for key, value in node.items()}
    if str(copy.get("_target_", "")).endswith("HFModelConfig"):
        copy |= {"path": "stand-in" if light else _tiny_model(), "hf_config_path": None, "tokenizer_path": None}
        # The module is imported where names are looked up.
        copy |= {"external_lib": None, "use_shm": False}
    return copy


def _tiny_model() -> str:
    from verl_toolrl.integrations.tiny_model import write_tiny_model

    return str(write_tiny_model(weights=False))
