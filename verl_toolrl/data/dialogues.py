"""Dialogues with tools, from other layouts to verl's rows in ToolRL's prompt.

A *dialogue* is what every converter reads its layout into: tools, and turns of user, assistant and tools. Each answer
of the assistant becomes a row of its own with the turns before it as history, as ToolRL decomposes its sources
(arXiv:2504.13958, section 4.1; history as in qiancheng0/ToolRL@8cee13e, dataset/rlla_4k):

    **Dialogue Records History**
    <user> ... </user>

    <think> ... </think>
    <tool_call>
    {"name": ..., "parameters": {...}}
    </tool_call>
    <obs> [{"name": ..., "results": ...}] </obs>

    <user> ... </user>

Or, format `native`, as messages for a chat template that writes the tools itself, which stand in a column `tools`:
earlier calls in the dialect of the model, results as messages of the role `tool`, the truth as an OpenAI message.

Where a source has no thoughts, a short one stands in for them, in history and ground truth alike: rewards ask for a
thought and never read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_toolrl.data.world.prompts import NATIVE, native_truth, system_prompt
from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats import write_response
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.trajectory import ToolCall

__all__ = ["Answer", "Dialogue", "Observation", "Question", "dialogue_rows", "sft_rows"]

_CALL_THOUGHT = "A tool with the right parameters serves the user here."
_ANSWER_THOUGHT = "I can answer the user directly."


@dataclass(frozen=True)
class Question:
    """What the user says."""

    text: str


@dataclass(frozen=True)
class Answer:
    """What the assistant says: calls, a text, or both."""

    calls: tuple[ToolCall, ...] = ()
    text: str | None = None
    thought: str | None = None


@dataclass(frozen=True)
class Observation:
    """What tools returned for the calls before."""

    results: tuple[Any, ...]


@dataclass(frozen=True)
class Dialogue:
    """One row of a source."""

    tools: tuple[Mapping[str, Any], ...]
    """OpenAI schemas, `{"type": "function", "function": {...}}`."""
    turns: tuple[Question | Answer | Observation, ...]
    system: str | None = None
    """Instructions of the source beside the tools (a policy, a date); they come before ToolRL's own."""


def dialogue_rows(
    dialogue: Dialogue,
    *,
    data_source: str,
    format: str = "toolrl",
    style: str = "full",
    dialect: str = "hermes",
    last_only: bool = False,
) -> list[dict[str, Any]]:
    """Return a row of verl's RL schema for each answer of the assistant.

    Args:
        dialogue: What to turn into rows.
        data_source: Name under which validation reports the rows.
        format: toolrl: tools inside the prompt; native: in a column, for the model's chat template.
        style: Of ToolRL's prompt: full, or short (fewer tokens).
        dialect: In which earlier calls of native rows are written.
        last_only: Only the last answer.

    Raises:
        DatasetError: If there is no answer, a call is of a tool that the row does not offer, or an answer cannot be
            written in ToolRL's tags or the dialect.
    """
    _check(dialogue)
    native = format == "native"
    system = NATIVE if native else system_prompt(dialogue.tools, style=style)
    tools = json.dumps(list(dialogue.tools), ensure_ascii=False)
    if dialogue.system:
        system = f"{dialogue.system.strip()}\n\n{system}"
    rows = []
    for index, turn in enumerate(dialogue.turns):
        if not isinstance(turn, Answer) or (last_only and index != _last_answer(dialogue)):
            continue
        before = dialogue.turns[:index]
        truth = native_truth(turn.calls, (turn.text or "").strip() or None) if native else _written(turn)
        # What is trained on is read back, so that no row can be wrong for a reason that only a run would find.
        if not _same(parse_ground_truth(truth).calls, turn.calls):
            raise DatasetError(f"turn {index}: calls change when they are written as a ground truth: {truth[:120]!r}")
        said = [{"role": "user", "content": f"**Dialogue Records History**\n{_history(before)}"}]
        rows.append(
            {
                "data_source": data_source,
                "prompt": [
                    {"role": "system", "content": system},
                    *(_messages(before, dialect, dialogue.tools) if native else said),
                ],
                "ability": "tool_use",
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"tools": tools},
                **({"tools": tools} if native else {}),
            }
        )
    return rows


def sft_rows(rows: Sequence[Mapping[str, Any]], dialect: str = "hermes") -> list[dict[str, Any]]:
    """Return rows of verl's SFT trainer for rows of its RL schema: the ground truth as the assistant's message.

    Args:
        rows: As `dialogue_rows` makes them.
        dialect: In which calls of native rows are written.
    """
    found = []
    for row in rows:
        truth = row["reward_model"]["ground_truth"]
        if "tools" in row:
            answer = Answer(parse_ground_truth(truth).calls, json.loads(truth)["content"])
            truth = _written(answer, dialect, json.loads(row["tools"]))
        messages = [*row["prompt"], {"role": "assistant", "content": truth}]
        found.append({"messages": messages, **({"tools": row["tools"]} if "tools" in row else {})})
    return found


def _same(first: Sequence[ToolCall], second: Sequence[ToolCall]) -> bool:
    return [(call.name, dict(call.arguments)) for call in first] == [
        (call.name, dict(call.arguments)) for call in second
    ]


def _check(dialogue: Dialogue) -> None:
    names = [tool["function"]["name"] for tool in dialogue.tools]
    if not any(isinstance(turn, Answer) for turn in dialogue.turns):
        raise DatasetError("no answer of the assistant")
    if not isinstance(dialogue.turns[0], Question):
        raise DatasetError(f"begins with {type(dialogue.turns[0]).__name__.lower()}, wanted a question of the user")
    for index, turn in enumerate(dialogue.turns):
        if not isinstance(turn, Answer):
            continue
        if not turn.calls and not (turn.text or "").strip():
            raise DatasetError(f"turn {index}: the assistant says nothing")
        for call in turn.calls:
            if call.name not in names:
                raise DatasetError(f"turn {index}: calls {call.name!r}, which is not among the tools: {names}")


def _last_answer(dialogue: Dialogue) -> int:
    return max(index for index, turn in enumerate(dialogue.turns) if isinstance(turn, Answer))


def _written(answer: Answer, dialect: str = "toolrl", tools: Sequence[Mapping[str, Any]] = ()) -> str:
    thought = answer.thought or (_CALL_THOUGHT if answer.calls else _ANSWER_THOUGHT)
    said = (answer.text or "").strip() or None
    try:
        return write_response(answer.calls, dialect, thought=thought, response=said, tools=tools)
    except ConfigError as err:
        raise DatasetError(str(err)) from err


def _messages(
    turns: Sequence[Question | Answer | Observation], dialect: str, tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for turn in turns:
        if isinstance(turn, Question):
            found.append({"role": "user", "content": turn.text})
        elif isinstance(turn, Answer):
            found.append({"role": "assistant", "content": _written(turn, dialect, tools)})
        else:
            if not any(message["role"] == "assistant" for message in found):
                raise DatasetError("a result of a tool before any call")
            found += [{"role": "tool", "content": json.dumps(each, ensure_ascii=False)} for each in turn.results]
    return found


def _history(turns: Sequence[Question | Answer | Observation]) -> str:
    parts: list[str] = []
    for turn in turns:
        if isinstance(turn, Question):
            parts.append(f"<user> {turn.text} </user>")
        elif isinstance(turn, Answer):
            parts.append(_written(turn))
        else:
            observed = f"<obs> {json.dumps(list(turn.results), ensure_ascii=False)} </obs>"
            if not parts:
                raise DatasetError("a result of a tool before any call")
            parts[-1] = f"{parts[-1]}\n{observed}"
    return "\n\n".join(parts)
