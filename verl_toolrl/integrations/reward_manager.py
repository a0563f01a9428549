"""The reward manager `toolrl`: verl's side of `verl_toolrl.rewards`.

    reward:
      reward_manager: {name: toolrl}
      reward_kwargs: {mode: released}

What may stand under `reward.reward_kwargs` says `verl_toolrl.rewards.configured`. The step of a schedule is verl's own
`global_steps`, the horizon its `total_training_steps`. `reward_info` says what is reported of each response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.formats.tool_list import row_tools
from verl_toolrl.integrations.reward_info import reward_info
from verl_toolrl.integrations.trajectory_travel import read_trajectory, trajectory_result
from verl_toolrl.rewards import configured_reward, configured_watcher, unscheduled
from verl_toolrl.rewards.trajectory import takes_trajectory

__all__ = ["ToolRLRewardManager", "reward_from_config", "reward_options"]

PATIENCE = 120.0
"""Seconds after which a reward that has not answered counts as a failure of infrastructure, never as a score."""


def reward_options(config: DictConfig) -> dict[str, Any]:
    """Return `reward.reward_kwargs` of the trainer's whole configuration as plain values."""
    options = OmegaConf.to_container(config.reward.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def reward_from_config(config: DictConfig) -> Any:
    """Build the reward that the trainer's whole configuration asks for.

    Raises:
        ConfigError: If an option is unknown or contradicts another.
    """
    return configured_reward(reward_options(config))


@register("toolrl")
class ToolRLRewardManager(RewardManagerBase):
    """Scores the last output of each session and reports the same names for every sample."""

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any = None, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.tokenizer: Any = tokenizer
        options = reward_options(config)
        self.reward = configured_reward(options)
        self.plain = unscheduled(self.reward)
        self.watch = configured_watcher(options, self.reward)
        self.total_steps = config.actor_rollout_ref.actor.optim.get("total_training_steps")

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one session.

        Args:
            data: One row an output of the session; the last one holds the final response. `responses` is right-padded,
                its true length is `response_len` (the attention mask is wrong for sessions of several outputs in
                0.9.1).

        Returns:
            `reward_score`, a float, and `reward_extra_info` (see `reward_info`).

        Raises:
            InfrastructureError: If a reward does not answer; verl counts the session as failed, and its group goes on.
        """
        item = data[-1]
        try:
            # In a thread, so that other sessions go on whatever this one wrote and whoever wrote the reward.
            return await asyncio.wait_for(asyncio.to_thread(self._score, item), PATIENCE)
        except TimeoutError as err:  # asyncio.TimeoutError before Python 3.11
            raise InfrastructureError(f"the reward {self.reward} has not answered for {PATIENCE:.0f} s") from err

    def _score(self, item: Any) -> dict[str, Any]:
        fields = item.non_tensor_batch
        step, truth, tools = int(fields.get("global_steps", 0)), fields["reward_model"]["ground_truth"], _tools(fields)
        trajectory = read_trajectory(fields.get("tool_extra_fields") or {})
        if takes_trajectory(self.reward):
            answer = trajectory_result(self.reward, trajectory, step, self.total_steps)
            assert trajectory is not None
            answer["reward_extra_info"].update(self.watch.trajectory(trajectory, ground_truth=truth, tools=tools))
            return answer
        if trajectory is not None:  # the tools' answers are no part of what the model said last
            text = trajectory.final_answer
        else:
            text = self.tokenizer.decode(item.batch["responses"][: _length(item)], skip_special_tokens=True)
        given = {
            "response": text,
            "ground_truth": truth,
            "tools": tools,
            "step": step,
            "total_steps": self.total_steps,
        }
        result = self.reward(**given)
        plain = result if self.plain == self.reward else self.plain(**given)
        watched = self.watch(response=text, ground_truth=truth, tools=tools)
        return {"reward_score": result.score, "reward_extra_info": reward_info(result, plain, watched)}


def _length(item: Any) -> int:
    return int(item.non_tensor_batch.get("response_len", item.batch["responses"].shape[-1]))


def _tools(fields: Mapping[str, Any]) -> Any:
    """Return the schemas of the tools on offer: from `extra_info`, else as ToolRL's prompt lists them."""
    prompt = fields.get("prompt", fields.get("raw_prompt"))
    return row_tools({"extra_info": fields.get("extra_info"), "prompt": prompt}) or None
