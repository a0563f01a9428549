"""The reward `toolrl` (Qian et al. 2025, arXiv:2504.13958): three modes under one name.

- `released` repeats the authors' released scorer to the last bit (`verl_toolrl.rewards.released`).
- `paper` follows the paper's formulas (`verl_toolrl.rewards.paper`).
- `robust`, the default, is what we train with (`verl_toolrl.rewards.robust`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.rewards.base import RewardFunction, check_options, register_reward
from verl_toolrl.rewards.paper import PaperReward
from verl_toolrl.rewards.released import ReleasedReward
from verl_toolrl.rewards.robust import RobustReward

__all__ = ["MODES", "make_toolrl"]

MODES: dict[str, Any] = {"released": ReleasedReward, "paper": PaperReward, "robust": RobustReward}
"""Mode -> class; the fields of the class are its options."""


@register_reward("toolrl")
def make_toolrl(*, mode: str = "robust", **options: Any) -> RewardFunction:
    """Build `toolrl` in one of its modes.

    Raises:
        ConfigError: If the mode is unknown, or an option is unknown or belongs to another mode.
    """
    if mode not in MODES:
        raise ConfigError(f"toolrl: unknown mode {mode!r}{nearest(mode, MODES)}; known: {', '.join(MODES)}")
    known = [option.name for option in fields(MODES[mode])]
    for option in options:
        owners = [name for name, scheme in MODES.items() if option in {field.name for field in fields(scheme)}]
        if option not in known and owners:
            raise ConfigError(f"toolrl: option {option!r} belongs to mode {' and '.join(owners)}, not to {mode}")
    check_options(f"toolrl ({mode})", options, known)
    reward: RewardFunction = MODES[mode](**options)
    return reward
