"""What a rollout hands to verl: tokens, mask, and rewards on the tokens that earned them.

The reward manager may answer with a reward for each step; `as_dict`, which verl calls after the reward is known, puts
each on the last token of its step. A reward without steps goes to the last token that the model wrote (verl's own form
puts it on the last token of all, which an estimator drops where a tool wrote it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_toolrl.credit import Steps, pad_steps, place_final_reward, place_step_rewards
from verl_toolrl.integrations.trajectory_travel import STEP_REWARDS, TRAJECTORY
from verl_toolrl.rollout.wire import loads

__all__ = ["TrajectoryOutput"]


class TrajectoryOutput(AgentLoopOutput):
    """verl's output with the rewards where they belong."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that verl stores; `rm_scores` is dense where the reward gave step rewards."""
        info = self.extra_fields.get("reward_extra_info")
        rewards = info.pop(STEP_REWARDS, None) if isinstance(info, dict) else None
        if rewards is not None:
            self.extra_fields[STEP_REWARDS] = rewards
        score = self.reward_score
        fields = super().as_dict()
        if score is not None:
            mask = fields["response_mask"].unsqueeze(0)
            if rewards is None:
                placed = place_final_reward(torch.tensor([score], dtype=torch.float32), mask)
            else:
                placed = _placed(loads(rewards), self.extra_fields, mask)
            fields["rm_scores"] = placed[0].float()
        return fields


def _placed(rewards: Sequence[float], extra_fields: Mapping[str, Any], mask: torch.Tensor) -> torch.Tensor:
    spans = [step["span"] for step in loads(extra_fields[TRAJECTORY])["steps"]]
    step_rewards, offsets = pad_steps([list(rewards)], [[(int(start), int(end)) for start, end in spans]])
    return place_step_rewards(step_rewards, Steps(offsets, mask))
