"""Anchor states: which steps of a batch were taken in the same situation (GiGPO, arXiv:2505.10978).

Only equality counts, so a state is a number given by first appearance. Numbers are comparable inside one call; compare
inside a group only, because the prompt is part of no key.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch

from verl_toolrl.errors import UnknownNameError
from verl_toolrl.trajectory import Trajectory

__all__ = ["anchor_states"]


def anchor_states(
    trajectories: Sequence[Trajectory], *, key: Literal["observation", "history"] = "observation"
) -> torch.Tensor:
    """Number the state before each step.

    Args:
        trajectories: One a row.
        key: `observation`: what the tools answered last (the paper's anchor, where the observation describes the
            world); `history`: all that they have answered so far, in order, for tools whose answers do not.

    Returns:
        `(batch, max_steps)` int64, -1 where a trajectory has no such step.

    Raises:
        UnknownNameError: If the key is unknown.
    """
    if key not in ("observation", "history"):
        raise UnknownNameError("key of anchor states", key, ("observation", "history"))
    numbers: dict[Hashable, int] = {}
    states = torch.full((len(trajectories), max((len(t.steps) for t in trajectories), default=0)), -1)
    for row, trajectory in enumerate(trajectories):
        seen: tuple[Hashable, ...] = ()
        for column, step in enumerate(trajectory.steps):
            states[row, column] = numbers.setdefault(seen, len(numbers))
            answers = tuple((result.outcome.value, result.content) for result in step.results)
            # A chain of numbers stands for the history, so that long ones stay cheap to compare.
            seen = answers if key == "observation" else (numbers[seen], answers)
    return states
