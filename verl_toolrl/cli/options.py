"""Options that several commands share."""

from __future__ import annotations

from typing import Any

from verl_toolrl.errors import ConfigError

__all__ = ["parse_settings"]


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read `key=value` settings; values are YAML, dots in a key go into mappings.

    Raises:
        ConfigError: If a setting has no `=`, its value is no YAML, or two settings exclude each other.
    """
    import yaml

    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting!r}: wanted key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as err:
            raise ConfigError(f"--set {setting!r}: the value is no YAML") from err
        place = found
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {setting!r}: {part!r} already has a value")
        place[last] = value
    return found
