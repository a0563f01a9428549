"""verl's configuration dataclasses: their fields, the types of these, and building one from a node of a recipe.

A node with `_target_` is built as that dataclass when a run has started, and a key that is no field of it ends the run
there. Importing this module imports `verl.workers.config` (not the trainer, no engine, no Megatron).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
import warnings
from typing import Any

import verl.workers.config  # noqa: F401  (resolves most targets)
from verl.utils.config import omega_conf_to_dataclass

__all__ = ["build", "config_class", "field_hints", "nested_class"]


@functools.cache
def config_class(target: str) -> type | None:
    """Return the dataclass that a `_target_` names; None where it is no dataclass.

    Raises:
        ImportError, AttributeError: If there is no such name.
    """
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


@functools.cache
def field_hints(cls: type) -> dict[str, Any]:
    """Return the fields of a dataclass with their types; `Any` where a type cannot be resolved."""
    try:
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


def build(node: Any) -> Any:
    """Build the dataclass of a node as verl does.

    Args:
        node: A DictConfig with `_target_` and without interpolations.

    Raises:
        Exception: Whatever the dataclass finds wrong; verl raises AssertionError, ValueError, TypeError and others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return omega_conf_to_dataclass(node)
