"""Refuses what our agent loops could not roll out, before a model is loaded.

Looked at: the settings, the tools (opened once, so that a server that does not answer is found here), the chat template
(does it show tools, can it be extended turn by turn), and every row (tools, initial state and budget of its session;
the length of the longest prompts with their tools, unless the row is one that verl leaves out).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from omegaconf import DictConfig

from verl_toolrl.errors import AuthorError, ConfigError, DatasetError
from verl_toolrl.integrations.rollout_dataset import PromptRoom, measure_in_dataset
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
    asyncio.run(_check(config, tokenizer, reward, rows))


async def _check(
    config: DictConfig, tokenizer: Any, reward: Callable[..., Any], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    default = str(config.actor_rollout_ref.rollout.agent.default_agent_loop)
    exams: dict[str, _Exam] = {}
    async with AsyncExitStack() as open_boxes:
        for where, row in rows:
            name = str(row.get("agent_name") or default)
            if name not in FORMS:
                if takes_trajectory(reward):
                    raise ConfigError(
                        f"the reward scores trajectories, and the agent loop {name} records none; set "
                        f"actor_rollout_ref.rollout.agent.default_agent_loop to one of {', '.join(FORMS)}"
                    )
                continue
            if name not in exams:
                shared = next((exam.place.box for exam in exams.values()), None)
                place = Workplace.of(config, tokenizer, FORMS[name].form, box=shared)
                if shared is None:
                    await open_boxes.enter_async_context(place.box)
                exams[name] = _Exam(place)
            await exams[name].read(where, row)
    for name, exam in exams.items():
        exam.say_hidden()
        _check_budgets(exam.place, name)
    _check_lengths(config, exams, default)


def _check_budgets(place: Workplace, name: str) -> None:
    limits = place.limits
    for key in ("turn_tokens", "tool_tokens"):
        value = getattr(limits, key)
        if value is not None and value > limits.response_tokens:
            say(
                f"{name}: {key} of {value} tokens never takes effect: data.max_response_length is "
                f"{limits.response_tokens}"
            )


class _Exam:
    """Reads the rows of one agent loop, and keeps of them the longest alone."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self.longest: list[tuple[int, int, str, Mapping[str, Any]]] = []
        """Length in characters, running number, place and row: a heap whose first is the shortest."""
        self._hidden: dict[str, str] = {}
        self._rows = 0
        _check_template(place, place.box.schemas())

    async def read(self, where: str, row: Mapping[str, Any]) -> None:
        """Check what a row asks of its session.

        Raises:
            DatasetError: If there is no such tool, state or keyword.
        """
        place = self.place
        try:
            wanted = row_session(row.get("extra_info"), place.budget)
            if wanted.state:
                async with place.box.session("check", state=wanted.state):
                    pass
            messages, tools = place.prompt(row, wanted.tools)
        except AuthorError as err:
            raise DatasetError(f"{where}: {err}") from err
        text = "\n".join(str(message["content"]) for message in messages)
        if tools is None:
            for schema in place.schemas(wanted.tools):
                if schema["function"]["name"] not in text:
                    self._hidden.setdefault(schema["function"]["name"], where)
        self._rows += 1
        keep = heapq.heappush if len(self.longest) < _LONGEST else heapq.heappushpop
        keep(self.longest, (len(text), -self._rows, where, row))

    def say_hidden(self) -> None:
        """Point out the tools that no message of their row names."""
        for tool, where in self._hidden.items():
            say(
                f"{where}: no message names the tool {tool!r}, so that the model cannot know of it; {{tools}} in a "
                "message is replaced by the list of the row's tools"
            )


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


def _check_lengths(config: DictConfig, exams: Mapping[str, _Exam], default: str) -> None:
    """Measure the longest prompts; the others are shorter in characters, and the loop checks each again.

    A row that is too long is no mistake where verl may not use it. Which rows it uses its dataset alone knows, so that
    one of ours then decides; beside a dataset class of the user what verl would leave out is worked out here.
    """
    room = PromptRoom({name: exam.place for name, exam in exams.items()}, default)
    data = config.data
    filters = bool(data.get("filter_overlong_prompts", True))
    samples = any((data.get(f"{name}_max_samples") or -1) > 0 for name in ("train", "val"))
    own_class = (data.get("custom_cls") or {}).get("path") is not None
    for exam in exams.values():
        for _, _, where, row in sorted(exam.longest, key=lambda each: each[:2], reverse=True):
            problem = room.problem(row)
            if problem is None or own_class and filters and _too_long_for_verl(exam.place, row):
                continue
            if own_class or not (samples or filters and problem.left_out):
                raise DatasetError(f"{where}: {problem.reason}")
            measure_in_dataset(config, room)
            return


def _too_long_for_verl(place: Workplace, row: Mapping[str, Any]) -> bool:
    """Whether a prompt is over the limit without our tools, as verl measures it."""
    assert place.limits.prompt_tokens is not None
    messages = [dict(message) for message in as_list(row["prompt"]) or ()]
    return len(place.chat.prompt_ids(messages)) > place.limits.prompt_tokens
