"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_toolrl.errors import ConfigError

__all__ = ["parse_settings", "refuse_without_effect", "token_counter"]


def token_counter(name: str) -> Callable[..., int]:
    """Return a function from messages, and tools for the chat template, to their length in tokens.

    Args:
        name: Folder or name of a tokenizer. Its chat template is included; without one the contents are counted.

    Raises:
        ConfigError: If the tokenizer cannot be loaded.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as err:
        raise ConfigError("--tokenizer needs the package transformers, which comes with verl") from err
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as err:
        raise ConfigError(f"--tokenizer {name}: cannot be loaded ({str(err).splitlines()[0]})") from err

    def count(prompt: Any, tools: Any = None) -> int:
        messages = [dict(message) for message in prompt]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n".join(str(message["content"]) for message in messages)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


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


def refuse_without_effect(option: str, value: str | None, belongs_to: str, format: str) -> None:
    """Refuse an option of rows in another format than the one that was chosen.

    Args:
        option: As on the command line.
        value: What the user gave; None where it was left out.
        belongs_to: The format that has the option.
        format: The one that was chosen.

    Raises:
        ConfigError: If it was given and would do nothing.
    """
    if value is not None and format != belongs_to:
        raise ConfigError(
            f"{option} {value}: belongs to --format {belongs_to}, but the format is {format}; leave {option} out or "
            f"give --format {belongs_to}"
        )
