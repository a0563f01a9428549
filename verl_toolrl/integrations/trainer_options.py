"""What may stand under `trainer.toolrl`; apart from the trainer, so that a recipe can be checked without loading it."""

from __future__ import annotations

__all__ = ["TRAINER_OPTIONS"]

TRAINER_OPTIONS: dict[str, type] = {"poll_interval": float}
"""Option -> type of its value."""
