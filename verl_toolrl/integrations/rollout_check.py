"""Refuses what our agent loops could not roll out, before a model is loaded.

Looked at: the settings, the tools (opened once, so that a server that does not answer is found here), the chat template
(does it show tools, can it be extended turn by turn), and every row (tools, initial state and budget of its session;
the length of the longest prompts with their tools).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from verl_toolrl.errors import AuthorError, ConfigError, DatasetError
from verl_toolrl.integrations.rollout_loops import DialogueLoop, NativeLoop, ReActLoop, ToolRLLoop, Workplace
from verl_toolrl.integrations.say import say
from verl_toolrl.rewards.trajectory import takes_trajectory
from verl_toolrl.rollout.settings import row_session
from verl_toolrl.schema import as_list

__all__ = ["FORMS", "check_rollout"]

FORMS: dict[str, type[DialogueLoop]] = {
    "toolrl_dialogue": ToolRLLoop,
    "toolrl_native": NativeLoop,
    "toolrl_react": ReActLoop,
}
"""Name of an agent loop -> its class."""

_LONGEST = 256


def check_rollout(
    config: DictConfig, tokenizer: Any, reward: Callable[..., Any], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Check a run that uses our agent loops; a run that uses none is left alone.

    Args:
        config: The trainer's whole configuration.
        tokenizer: Of the model, with its chat template.
        reward: The configured reward.
        rows: Where each row stands (`train.parquet: row 17`), and the row.

    Raises:
        ConfigError: If the settings, the tools or the chat template do not allow it, or the reward scores trajectories
            and a loop that records none is used.
        DatasetError: For the first row that is wrong.
    """
    default = str(config.actor_rollout_ref.rollout.agent.default_agent_loop)
    by_loop: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for where, row in rows:
        by_loop.setdefault(str(row.get("agent_name") or default), []).append((where, row))
    if takes_trajectory(reward) and (silent := sorted(by_loop.keys() - FORMS.keys())):
        raise ConfigError(
            f"the reward scores trajectories, and the agent loop {silent[0]} records none; set actor_rollout_ref."
            f"rollout.agent.default_agent_loop to one of {', '.join(FORMS)}"
        )
    for name in sorted(by_loop.keys() & FORMS.keys()):
        place = Workplace.of(config, tokenizer, FORMS[name].form)
        asyncio.run(_check_rows(place, by_loop[name]))
        _check_budgets(place, name)


def _check_budgets(place: Workplace, name: str) -> None:
    limits = place.limits
    for key in ("turn_tokens", "tool_tokens"):
        value = getattr(limits, key)
        if value is not None and value > limits.response_tokens:
            say(
                f"{name}: {key} of {value} tokens never takes effect: data.max_response_length is "
                f"{limits.response_tokens}"
            )


async def _check_rows(place: Workplace, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    async with place.box:
        _check_template(place, place.box.schemas())
        prompts: list[tuple[int, str, list[dict[str, Any]], Any]] = []
        hidden: dict[str, str] = {}
        for where, row in rows:
            try:
                wanted = row_session(row.get("extra_info"), place.budget)
                async with place.box.session(
                    "check", state=wanted.state, budget=wanted.budget, tools=wanted.tools
                ) as session:
                    schemas = session.schemas
            except AuthorError as err:
                raise DatasetError(f"{where}: {err}") from err
            messages = [dict(message) for message in as_list(row["prompt"]) or ()]
            messages = place.dialogue.messages(messages, schemas)
            text = "\n".join(str(message["content"]) for message in messages)
            size = len(text)
            if not place.dialogue.tools_in_template:
                for schema in schemas:
                    tool = schema["function"]["name"]
                    if tool not in text:
                        hidden.setdefault(tool, where)
            prompts.append((size, where, messages, schemas if place.dialogue.tools_in_template else None))
    for tool, where in hidden.items():
        say(
            f"{where}: no message names the tool {tool!r}, so that the model cannot know of it; {{tools}} in a message "
            "is replaced by the list of the row's tools"
        )
    _check_lengths(place, prompts)


def _check_template(place: Workplace, schemas: list[dict[str, Any]]) -> None:
    if place.dialogue.tools_in_template and schemas and not place.chat.shows_tools(schemas):
        raise ConfigError(
            "the chat template has no support for tools: it does not show them to the model. Take the agent loop "
            "toolrl_dialogue or toolrl_react, whose prompts show the tools themselves, or set "
            "actor_rollout_ref.model.custom_chat_template"
        )
    tools = schemas if place.dialogue.tools_in_template else None
    for problem in place.chat.extension_problems(*place.dialogue.probe(), tools=tools):
        text = (
            f"the chat template cannot be extended turn by turn in the form {place.dialogue.name!r}: {problem}. A "
            "model that is served with this template would see another context than it was trained on. Take another "
            "form (templates that drop earlier thoughts keep them with toolrl_native), another template, or set "
            "actor_rollout_ref.rollout.custom.toolrl.strict_template=false"
        )
        if place.settings.strict_template:
            raise ConfigError(text)
        say(text)


def _check_lengths(place: Workplace, prompts: list[tuple[int, str, list[dict[str, Any]], Any]]) -> None:
    """Tokenise the longest prompts; the others are shorter in characters, and the loop checks each again."""
    allowed, room = place.limits.prompt_tokens, place.limits.context_tokens
    assert allowed is not None and room is not None
    for _, where, messages, tools in sorted(prompts, key=lambda prompt: -prompt[0])[:_LONGEST]:
        length = len(place.chat.prompt_ids(messages, tools=tools))
        if length > allowed:
            raise DatasetError(
                f"{where}: the prompt with its tools has {length} tokens, data.max_prompt_length is {allowed}"
            )
        if length >= room:
            raise DatasetError(
                f"{where}: a prompt of {length} tokens leaves no room for an answer: "
                f"actor_rollout_ref.rollout.max_model_len is {room}"
            )
