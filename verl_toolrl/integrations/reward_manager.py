"""The reward manager `toolrl`: verl's side of `verl_toolrl.rewards`.

    reward:
      reward_manager: {name: toolrl}
      reward_kwargs: {mode: released}

What may stand under `reward.reward_kwargs` says `verl_toolrl.rewards.configured`. The step of a schedule is verl's own
`global_steps`, the horizon the last of them. `reward_info` says what is reported of each response.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.formats.tool_list import row_tools
from verl_toolrl.integrations.response_text import response_text
from verl_toolrl.integrations.reward_info import refuse_taken_names, reward_info
from verl_toolrl.integrations.trajectory_travel import read_trajectory, trajectory_result
from verl_toolrl.rewards import (
    answered_components,
    configured_reward,
    configured_watcher,
    expect_components,
    reads_special_tokens,
    unscheduled,
)
from verl_toolrl.rewards.trajectory import takes_trajectory
from verl_toolrl.toolbox.threads import Threads

__all__ = ["ToolRLRewardManager", "hold_workers_to", "reward_from_config", "reward_options", "total_steps_of"]

PATIENCE = 120.0
"""Seconds from its start after which a reward that has not answered counts as a failure of infrastructure, never as a
score. Waiting for a thread is not counted."""
THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Rewards that run at once in a worker; as many as asyncio's own pool has."""
_ANSWERED = "toolrl_answered_components"
"""Key under `reward` that our trainers write for the reward workers; nobody else does."""


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


def hold_workers_to(reward: Any, config: DictConfig) -> None:
    """Write into the configuration which components a user's own rewards have answered.

    Each of verl's reward workers builds the reward anew; without this each would be held to its own first answer, and
    two workers could answer other components. Must be called before verl makes the workers from the configuration.

    Args:
        reward: That of the configuration, after it has scored every row with an empty response.
        config: The trainer's whole configuration.
    """
    with open_dict(config):
        config.reward[_ANSWERED] = answered_components(reward)


def total_steps_of(config: DictConfig) -> int | None:
    """Return the length of a run in global steps, by which schedules run; None before verl knows it.

    verl writes the number of the optimizer's updates into the configuration of the optimizer, of which a global step of
    `separate_async` makes `parameter_sync_step`.
    """
    updates = OmegaConf.select(config, "actor_rollout_ref.actor.optim.total_training_steps")
    if updates is None or updates < 0:
        return None
    # Our trainers read the options of the mode of verl that they are built on.
    mode = str(OmegaConf.select(config, "trainer.v1.trainer_mode") or "").removeprefix("toolrl_")
    updates_per_step = OmegaConf.select(config, f"trainer.v1.{mode}.parameter_sync_step") if mode else None
    return int(updates) // int(updates_per_step or 1)


@register("toolrl")
class ToolRLRewardManager(RewardManagerBase):
    """Scores the last output of each session and reports the same names for every sample."""

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any = None, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.tokenizer: Any = tokenizer
        options = reward_options(config)
        self.reward = configured_reward(options)
        if config.reward.get(_ANSWERED) is not None:
            origin = "its answer to an empty response, before the run,"
            expect_components(self.reward, config.reward[_ANSWERED], origin)
        self.plain = unscheduled(self.reward)
        self.watch = configured_watcher(options, self.reward)
        self.special_tokens = reads_special_tokens(self.reward, self.watch)
        self.total_steps = total_steps_of(config)
        self._threads = Threads(THREADS)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one session.

        Args:
            data: One row an output of the session; the last one holds the final response. `responses` is right-padded,
                its true length is `response_len` (the attention mask is wrong for sessions of several outputs in
                0.9.1).

        Returns:
            `reward_score`, a float, and `reward_extra_info` (see `reward_info`).

        Raises:
            InfrastructureError: If a reward does not answer. verl counts the session as failed: under `toolrl_sync` the
                others of its group go on, the asynchronous trainers drop and refill the whole prompt. What else a
                reward raises is raised; the trainers of this package stop at a mistake in its code.
        """
        item = data[-1]
        try:
            # In a thread, so that other sessions go on whatever this one wrote and whoever wrote the reward.
            return await self._patiently(lambda: self._score(item))
        except Exception as err:
            await _tell_the_trainer(item.non_tensor_batch, err)
            raise

    async def _patiently(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `work` in a thread; one that hangs is given up, and its place goes to the next."""
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[tuple[dict[str, Any], BaseException | None]] = loop.create_future()

        def run() -> dict[str, Any]:
            _tell(loop, begun, None)
            return work()

        job = self._threads.submit(run, lambda answer, error: _tell(loop, ended, (answer, error)))
        if job is None:
            raise InfrastructureError(f"the reward {self.reward} hangs in too many threads")
        try:
            await begun
            await asyncio.wait({ended}, timeout=PATIENCE)
            if not ended.done() and job.abandon():
                raise InfrastructureError(f"the reward {self.reward} has not answered for {PATIENCE:.0f} s")
            answer, error = await ended
        finally:
            job.abandon()
        if error is not None:  # the reward's own, a TimeoutError too
            raise error
        return answer

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
            ids = item.batch["responses"][: _length(item)]
            text = response_text(self.tokenizer, ids, special_tokens=self.special_tokens)
        given = {
            "response": text,
            "ground_truth": truth,
            "tools": tools,
            "step": step,
            "total_steps": self.total_steps,
        }
        result = self.reward(**given)
        refuse_taken_names(self.reward, result.components)
        plain = result if self.plain == self.reward else self.plain(**given)
        watched = self.watch(response=text, ground_truth=truth, tools=tools)
        return {"reward_score": result.score, "reward_extra_info": reward_info(result, plain, watched)}


async def _tell_the_trainer(fields: Mapping[str, Any], err: Exception) -> None:
    """Report an error where TransferQueue is installed; verl's trainers from before V1 do without it, and so do we."""
    with suppress(ModuleNotFoundError):
        from verl_toolrl.integrations.lost_sessions import report_reward_error

        await report_reward_error(fields, err)


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any) -> None:
    """Set the result of a future from another thread, where somebody still waits for it."""
    with suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(value))


def _length(item: Any) -> int:
    return int(item.non_tensor_batch.get("response_len", item.batch["responses"].shape[-1]))


def _tools(fields: Mapping[str, Any]) -> Any:
    """Return the schemas of the tools on offer, from where `row_tools` finds them."""
    prompt = fields.get("prompt", fields.get("raw_prompt"))
    return row_tools({"tools": fields.get("tools"), "extra_info": fields.get("extra_info"), "prompt": prompt}) or None
