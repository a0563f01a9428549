"""Agent loops registered with verl: one assistant message, sampled from a seed of its own, and those of several turns.

verl seeds the engine once, so what a request samples depends on the order in which requests arrive. Here every request
carries a seed made from the run's seed, the training step, the row and the session, so that two runs sample the same
from the same weights. What can still differ: the engine's floating-point sums depend on how requests are batched, and a
token whose probability lies on the edge may fall either way.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_toolrl.errors import DatasetError
from verl_toolrl.formats.tool_list import read_tools
from verl_toolrl.integrations import rollout_loops  # noqa: F401  registers the loops of several turns
from verl_toolrl.integrations.lost_sessions import reported_errors
from verl_toolrl.integrations.rollout_engine import SEED_KEY, request_seed
from verl_toolrl.integrations.say import say_at_first
from verl_toolrl.integrations.session_seed import session_seed

__all__ = ["SeededSingleTurnAgentLoop", "request_seed", "tools_of"]


@register("toolrl_single_turn")
class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop, with a seed for each request, and a row's column `tools` in the chat template."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Answer once.

        Raises:
            DatasetError: If the column `tools` cannot be read, or the prompt is too long with its tools.
        """
        key = SEED_KEY.get(self.rollout_config.name)
        seed = session_seed(sampling_params, self.rollout_config, kwargs)
        if key is not None and seed is not None:
            sampling_params = {**sampling_params, key: seed}
        async with reported_errors(kwargs):
            self._tools = tools_of(kwargs.get("tools"))
            return await super().run(sampling_params, priority=priority, **kwargs)

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """Tokenise the prompt as verl does, whose single-turn loop knows no tools of a row."""
        found: list[int] = await super().ct_build_initial_tokens(*args, **{"tools": self._tools, **kwargs})
        return found

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """Refuse to cut a prompt with tools, of which verl would drop the beginning; say it where one without is cut.

        Raises:
            DatasetError: If it is too long.
        """
        allowed = self.rollout_config.prompt_length
        if len(prompt_ids) > allowed:
            found = f"has {len(prompt_ids)} tokens, data.max_prompt_length is {allowed}"
            if self._tools:
                raise DatasetError(f"the prompt with its tools {found}")
            say_at_first("cut prompts", f"a prompt {found}: it loses its beginning", times=1)
        return super()._cap_text_prompt_length(prompt_ids)


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return the schemas of a column `tools` (a list, or its JSON text) in OpenAI form, None where there are none."""
    found = [{"type": "function", "function": dict(tool)} for tool in read_tools(value, "column tools")]
    return found or None
