"""Refuses what our agent loops could not roll out, before a model is loaded.

Looked at: the settings, the tools (opened once, so that a server that does not answer is found here), the chat template
(does it show tools, can it be extended turn by turn, does it write calls in the dialect in which they are read), and
every row (tools, initial state and budget of its session; the length of the longest prompts with their tools, unless
the row is one that verl leaves out). Of `toolrl_single_turn`, rows with a column `tools`: verl's dataset measures them
without it.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from omegaconf import DictConfig

from verl_toolrl.errors import AuthorError, ConfigError, DatasetError
from verl_toolrl.formats import DIALECTS, Dialect, ParsedResponse
from verl_toolrl.integrations.agent_loop import tools_of
from verl_toolrl.integrations.rollout_dataset import Place, PromptRoom, SingleTurnPlace, measure_in_dataset
from verl_toolrl.integrations.rollout_loops import DialogueLoop, NativeLoop, ReActLoop, ToolRLLoop, Workplace
from verl_toolrl.integrations.say import say
from verl_toolrl.rewards.trajectory import takes_trajectory
from verl_toolrl.rollout.settings import WHERE, row_session
from verl_toolrl.schema import as_list
from verl_toolrl.trajectory import ToolCall

__all__ = ["FORMS", "check_rollout"]

FORMS: dict[str, type[DialogueLoop]] = {
    "toolrl_dialogue": ToolRLLoop,
    "toolrl_native": NativeLoop,
    "toolrl_react": ReActLoop,
}
"""Name of an agent loop of several turns -> its class."""

_SINGLE_TURN = "toolrl_single_turn"
_LONGEST = 256

# What a chat template is asked to write, to see in which dialect it does.
_ASKED = ("look_up", {"key": "a b", "n": 3})
_CALL = ToolCall(*_ASKED)
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "description": "What."},
                "n": {"type": "integer", "description": "How many."},
            },
            "required": ["key", "n"],
        },
    },
}


def check_rollout(
    config: DictConfig, tokenizer: Any, reward: Callable[..., Any], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Check a run that uses our agent loops of several turns, or rows with tools of their own; others are left alone.

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
    tools_in_rows = False
    async with AsyncExitStack() as open_boxes:
        for where, row in rows:
            name = str(row.get("agent_name") or default)
            if name not in FORMS:
                if takes_trajectory(reward):
                    raise ConfigError(
                        f"the reward scores trajectories, and the agent loop {name} records none; set "
                        f"actor_rollout_ref.rollout.agent.default_agent_loop to one of {', '.join(FORMS)}"
                    )
                if name == _SINGLE_TURN:
                    tools_in_rows = _has_tools(where, row) or tools_in_rows
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
    places: dict[str, Place] = {name: exam.place for name, exam in exams.items()}
    if tools_in_rows:
        places[_SINGLE_TURN] = SingleTurnPlace(config, tokenizer)
    _check_lengths(config, exams, PromptRoom(places, default))


def _has_tools(where: str, row: Mapping[str, Any]) -> bool:
    try:
        return tools_of(row.get("tools")) is not None
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err


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
        """Length in bytes, running number, place and row: a heap whose first is the shortest."""
        self._schema_bytes: dict[tuple[str, ...] | None, int] = {}
        self.rows = 0
        """How many were read."""
        self._hidden: dict[str, str] = {}
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
        self.rows += 1
        keep = heapq.heappush if len(self.longest) < _LONGEST else heapq.heappushpop
        keep(self.longest, (_bytes(text) + self._shown(wanted.tools), -self.rows, where, row))

    def _shown(self, names: tuple[str, ...] | None) -> int:
        """Return the bytes of the schemas that the chat template adds to the messages."""
        if not self.place.dialogue.tools_in_template:
            return 0
        if names not in self._schema_bytes:
            self._schema_bytes[names] = _bytes(json.dumps(self.place.schemas(names), ensure_ascii=False))
        return self._schema_bytes[names]

    def say_hidden(self) -> None:
        """Point out the tools that no message of their row names."""
        for tool, where in self._hidden.items():
            say(
                f"{where}: no message names the tool {tool!r}, so that the model cannot know of it; {{tools}} in a "
                "message is replaced by the list of the row's tools"
            )


def _bytes(text: str) -> int:
    """Nearer to the number of tokens than that of characters, of which other scripts need fewer for a token."""
    return len(text.encode("utf-8", errors="replace"))


def _check_template(place: Workplace, schemas: list[dict[str, Any]]) -> None:
    if place.dialogue.tools_in_template and schemas and not place.chat.shows_tools(schemas):
        raise ConfigError(
            "the chat template has no support for tools: it does not show them to the model. Take the agent loop "
            "toolrl_dialogue or toolrl_react, whose prompts show the tools themselves, or set "
            "actor_rollout_ref.model.custom_chat_template"
        )
    if place.dialogue.tools_in_template:
        _check_dialect(place)
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


def _check_dialect(place: Workplace) -> None:
    """Compare the dialect in which calls are read with the one in which the chat template writes them."""
    written = list(place.chat.written_call(_CALL, [_TOOL]))

    def readings(dialect: Dialect) -> list[ParsedResponse]:
        found = [dialect.read(text, tools=[_TOOL]) for text in written]
        return [each for each in found if [(call.name, call.arguments) for call in each.calls] == [_ASKED]]

    own = place.dialogue.dialect
    if readings(own):
        return
    others = {name: found for name, dialect in DIALECTS.items() if (found := readings(dialect))}
    if not others:  # a template that writes no calls, or in no dialect that we know
        return
    better = max(others, key=lambda name: any(each.well_formed for each in others[name]))
    text = (
        f"the dialect {own.name} does not read a call as the chat template writes it, {written[0][:120]!r}: calls of a "
        f"model of this family would count as answers, and no tool would run. Set {WHERE}.dialect={better}"
    )
    if place.settings.strict_template:
        raise ConfigError(f"{text}, or strict_template=false for a model that was taught {own.name}")
    say(text)


def _check_lengths(config: DictConfig, exams: Mapping[str, _Exam], room: PromptRoom) -> None:
    """Measure the prompts with the longest texts, tools included, 256 of each loop.

    A shorter text may still have more tokens (digits, rare words). Where long prompts are left out, a dataset of ours
    therefore measures all rows; else the loop finds such a row, and the run stops there.

    A row that is too long is no mistake where verl may not use it. Which rows it uses its dataset alone knows, so that
    ours then decides; beside a dataset class of the user what verl would leave out is worked out here. Rows of
    `toolrl_single_turn` with tools are measured by the dataset alone; beside a class of the user by the loop.
    """
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
    unmeasured = filters and any(exam.rows > len(exam.longest) for exam in exams.values())
    if not own_class and (unmeasured or _SINGLE_TURN in room.places):
        measure_in_dataset(config, room)


def _too_long_for_verl(place: Workplace, row: Mapping[str, Any]) -> bool:
    """Whether a prompt is over the limit without our tools, as verl measures it."""
    assert place.limits.prompt_tokens is not None
    messages = [dict(message) for message in as_list(row["prompt"]) or ()]
    return len(place.chat.prompt_ids(messages)) > place.limits.prompt_tokens
