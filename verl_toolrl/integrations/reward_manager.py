"""The reward manager `toolrl`: verl's side of `verl_toolrl.rewards`.

    reward:
      reward_manager: {name: toolrl}
      reward_kwargs: {mode: released}

Everything under `reward.reward_kwargs` goes to `make_reward`; `reward` there names another registered reward. The step
of a schedule is verl's own `global_steps`, the horizon its `total_training_steps`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_toolrl.integrations.trajectory_travel import read_trajectory, trajectory_result
from verl_toolrl.rewards import make_reward
from verl_toolrl.rewards.trajectory import takes_trajectory

__all__ = ["ToolRLRewardManager", "reward_from_config"]


def reward_from_config(config: DictConfig) -> Any:
    """Build the reward that the trainer's whole configuration asks for.

    Raises:
        ConfigError: If an option is unknown or contradicts another.
    """
    options = OmegaConf.to_container(config.reward.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
    assert isinstance(options, dict)
    return make_reward(str(options.pop("reward", "toolrl")), **{str(key): value for key, value in options.items()})


@register("toolrl")
class ToolRLRewardManager(RewardManagerBase):
    """Scores the last output of each session and reports every component under the same keys for every sample."""

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any = None, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.tokenizer: Any = tokenizer
        self.reward = reward_from_config(config)
        self.total_steps = config.actor_rollout_ref.actor.optim.get("total_training_steps")

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one session.

        Args:
            data: One row an output of the session; the last one holds the final response. `responses` is right-padded,
                its true length is `response_len` (the attention mask is wrong for sessions of several outputs in
                0.9.1).

        Returns:
            `reward_score`, a float, and `reward_extra_info`, the components as floats.
        """
        item = data[-1]
        return await asyncio.to_thread(self._score, item)

    def _score(self, item: Any) -> dict[str, Any]:
        fields = item.non_tensor_batch
        step = int(fields.get("global_steps", 0))
        trajectory = read_trajectory(fields.get("tool_extra_fields") or {})
        if takes_trajectory(self.reward):
            return trajectory_result(self.reward, trajectory, step, self.total_steps)
        length = int(fields.get("response_len", item.batch["responses"].shape[-1]))
        if trajectory is not None:  # the tools' answers are no part of what the model said last
            text = trajectory.final_answer
        else:
            text = self.tokenizer.decode(item.batch["responses"][:length], skip_special_tokens=True)
        extra_info = fields.get("extra_info") or {}
        result = self.reward(
            response=text,
            ground_truth=fields["reward_model"]["ground_truth"],
            tools=extra_info.get("tools"),
            step=step,
            total_steps=self.total_steps,
        )
        return {
            "reward_score": result.score,
            "reward_extra_info": {"score": result.score, **result.components, **result.metrics},
        }
