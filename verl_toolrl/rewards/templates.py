"""Cutting the chat template away from text that still carries it.

The rule is that of the released ToolRL scorer (qiancheng0/ToolRL@8cee13e): what follows the last header of an assistant
message, up to the first end mark, stripped. The original chose the family by the name of the experiment.
"""

from __future__ import annotations

from verl_toolrl.errors import ConfigError, nearest

__all__ = ["CHAT_FAMILIES", "check_family", "strip_template"]

CHAT_FAMILIES = {
    "none": None,
    "qwen": ("<|im_start|>assistant", "<|im_end|>"),
    "llama": ("<|start_header_id|>assistant<|end_header_id|>", "<|eot_id|>"),
}
"""Name -> (text before an assistant message, text after it)."""


def check_family(where: str, family: object) -> None:
    """Raise `ConfigError` for a family that is not known."""
    if family not in CHAT_FAMILIES:
        known = ", ".join(CHAT_FAMILIES)
        raise ConfigError(f"{where}: unknown chat_family {family!r}{nearest(family, CHAT_FAMILIES)}; known: {known}")


def strip_template(text: str, family: str) -> str:
    """Return the assistant's message, stripped."""
    template = CHAT_FAMILIES[family]
    if template is not None:
        header, end = template
        text = text.rpartition(header)[2].partition(end)[0]
    return text.strip()
