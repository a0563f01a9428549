"""The call that ends a trajectory and carries its answer."""

from __future__ import annotations

from verl_toolrl.toolbox import tool


@tool(domain="control", deterministic=True, isolation="inline", ends_trajectory=True, limits={"timeout": 1.0})
def finish(answer: str) -> str:
    """Give the final answer and end the task. Nothing can be done afterwards.

    Args:
        answer: The final answer for the user.
    """
    return answer
