"""What may stand under `trainer.toolrl`; apart from the trainer, so that a recipe can be checked without loading it.

The trainer and `recipes check` ask the same function, so that neither refuses what the other accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_toolrl.errors import ConfigError

__all__ = ["TRAINER_OPTIONS", "option_problem"]

TRAINER_OPTIONS: dict[str, type] = {
    "poll_interval": float,
    "max_lost_share": float,
    "log_prob_sample": int,
    "journal_steps": int,
    "journal_trajectories": int,
    "journal_megabytes": int,
    "alarms": dict,
}
"""Option -> type of its value."""

_MAY_BE_ZERO = ("max_lost_share", "journal_steps")
_MAY_BE_NULL = ("log_prob_sample", "alarms")


def option_problem(key: str, value: Any) -> str | None:
    """Return what is wrong with the value of a known option, or None."""
    if value is None and key in _MAY_BE_NULL:
        return None
    if TRAINER_OPTIONS[key] is dict:
        return _alarms_problem(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"a number is wanted, not {value!r}"
    if TRAINER_OPTIONS[key] is int and not isinstance(value, int):
        return f"a whole number is wanted, not {value!r}"
    if value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
        return f"a number {'of at least' if key in _MAY_BE_ZERO else 'above'} 0 is wanted, not {value!r}"
    if key == "max_lost_share" and value > 1:
        return f"a share is at most 1, not {value!r}"
    return None


def _alarms_problem(value: Any) -> str | None:
    from verl_toolrl.rollout.health import Thresholds

    if not isinstance(value, Mapping):
        return f"a mapping of alarms is wanted, not {value!r}"
    try:
        Thresholds.from_mapping(value)
    except ConfigError as err:
        return str(err)
    return None
