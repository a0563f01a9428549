"""What the reward manager tells about each response: the names in verl's `reward_extra_info`, the same in every log.

    score                          the reward
    <component>                    each part of it, as it was trained on
    unscheduled/score, .../<component>  the same without schedules, to compare across steps
    acc, calls/..., thought/words  what is watched whatever the reward is (`verl_toolrl.rewards.watch`)
    seen/<name>                    what the reward saw beside its components (surplus calls, repairs, ...)

All are floats, and which names there are depends on the configured reward alone; a component with a name of the others
is refused (`refuse_taken_names`). Validation logs them as `val-aux/<data source>/<name>/mean@1` (`val-core/...` for
`acc`), training as `reward/...` but for the watched `calls/...` and `thought/...` (`training_metrics`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from verl_toolrl.errors import ConfigError
from verl_toolrl.rewards import Reward
from verl_toolrl.rewards.watch import WATCHED
from verl_toolrl.rollout.health import zero_variance_share

__all__ = [
    "STEP_REWARDS",
    "UNSCHEDULED",
    "group_metrics",
    "refuse_taken_names",
    "reported_components",
    "reward_info",
    "training_metrics",
]

STEP_REWARDS = "toolrl_step_rewards"
"""Key with the rewards of the steps as JSON text: in `reward_extra_info` from the reward manager, then in
`extra_fields`, so that nobody averages a text."""
UNSCHEDULED = "unscheduled/"
_SEEN = "seen/"
_WATCHED_GROUPS = ("calls/", "thought/")
_OWN_GROUP = frozenset(name for name in WATCHED if name.startswith(_WATCHED_GROUPS))
"""Names of the training log without `reward/`; a component may begin with the same words, and keeps it."""


def reward_info(result: Reward, plain: Reward, watched: Mapping[str, float]) -> dict[str, float]:
    """Return what is reported of one response.

    Args:
        result: What the reward answered.
        plain: What it answers without its schedules.
        watched: What was watched; an `acc` among the reward's own metrics wins, since a user's function may know better
            what is right.
    """
    seen = dict(result.metrics)
    own = {"acc": seen.pop("acc")} if "acc" in seen else {}
    return {
        "score": result.score,
        **result.components,
        f"{UNSCHEDULED}score": plain.score,
        **{f"{UNSCHEDULED}{name}": value for name, value in plain.components.items()},
        **watched,
        **{key: float(value) for key, value in own.items()},
        **{f"{_SEEN}{name}": value for name, value in seen.items()},
    }


def refuse_taken_names(reward: Any, components: Iterable[str], *, trajectory: bool = False) -> None:
    """Refuse a component under whose name something else is reported: one of both would be lost, and GDPO misled.

    Args:
        reward: The configured reward, for the message.
        components: Names of the components that it answered.
        trajectory: It scores trajectories, of which `acc` is not watched.

    Raises:
        ConfigError: For the first such name.
    """
    taken = ["score", *(name for name in WATCHED if not (trajectory and name == "acc")), STEP_REWARDS]
    for name in components:
        if name in taken or name.startswith((UNSCHEDULED, _SEEN)):
            raise ConfigError(
                f"{getattr(reward, 'path', reward)}: the component {name!r} has a name under which something else is "
                f"reported; give it another than {', '.join(taken)} and whatever begins with {UNSCHEDULED} or {_SEEN}"
            )


def reported_components(info: Mapping[str, Any]) -> list[str]:
    """Return the names of the reward's components; for another reward manager's info, all of its numbers."""
    ours = [name for name in info if name != "score" and f"{UNSCHEDULED}{name}" in info]
    return ours or [name for name, value in info.items() if _is_number(value)]


def training_metrics(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average what was reported of the sessions of a step.

    Args:
        infos: `reward_extra_info` of each session.

    Returns:
        `<name>/mean` for the watched `calls/...` and `thought/...`, `reward/<name>/mean` for the rest; `.../max` and
        `.../min` too for what is trained on.
    """
    metrics: dict[str, float] = {}
    trained = {"score", *reported_components(infos[0])} if infos else set()
    for name in dict.fromkeys(name for info in infos for name in info):
        values = [info[name] for info in infos if _is_number(info.get(name))]
        if not values:
            continue
        key = name if name in _OWN_GROUP else f"reward/{name}"
        metrics[f"{key}/mean"] = float(np.mean(values))
        if name in trained:
            metrics[f"{key}/max"], metrics[f"{key}/min"] = float(np.max(values)), float(np.min(values))
    return metrics


def group_metrics(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Tell how many groups can teach anything.

    Args:
        scores: Group and score of each session.

    Returns:
        `groups/count`, `groups/lone` (share of the groups with a single session) and `groups/zero_variance` (of the
        others, the share in which all scores are equal, so that a comparison teaches nothing:
        `rollout.health.zero_variance_share`; 0 where there are no others).
    """
    scores = list(scores)
    sizes = Counter(group for group, _ in scores)
    return {
        "groups/count": float(len(sizes)),
        "groups/lone": sum(size == 1 for size in sizes.values()) / max(len(sizes), 1),
        "groups/zero_variance": zero_variance_share(scores) or 0.0,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number))
