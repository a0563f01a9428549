"""The offline training format of StepTool: trajectories with step rewards -> rows of prompts, responses and rewards.

One row a trajectory, three lists of equal length T: `prompt` holds the text before each step (the first: system message
and user; later: the tool answers), `response` what the model wrote in it, `reward` the step rewards. The concatenation
p_0 r_0 p_1 r_1 .. r_{T-1} is the conversation as the model saw it. Files are tab-separated with the header
`prompt response reward` and Python-literal lists in the cells, the layout of the authors' training data (one of the
things that their users asked for: how to get from annotations to it). It is read with `ast.literal_eval`; the released
trainer used `eval`.

Templates say how messages become text; the three released ones and plain ChatML:

    toolllama   System: / User: / Assistant: / Function: on lines of their own
    qwen2       <|im_start|>role ... <|im_end|>, tool answers in the role `function`
    llama3.1    <|start_header_id|>role<|end_header_id|> ... <|eot_id|>, tool answers in the role `function`
    chatml      as qwen2, tool answers in the role `tool`

Actions are the model's own text (`text`, the default), or rewritten the way the released data has them (`react`:
`Action:` and `Action Input:` without the thought), which is a different behaviour from the one that was sampled.
"""

from __future__ import annotations

import ast
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl_toolrl.errors import DatasetError, UnknownNameError
from verl_toolrl.trajectory import Step, Trajectory

__all__ = ["TEMPLATES", "OfflineRow", "Template", "read_offline", "to_offline", "write_offline"]


@dataclass(frozen=True)
class OfflineRow:
    """One trajectory in the offline format."""

    prompts: tuple[str, ...]
    """Text before each step."""
    responses: tuple[str, ...]
    """What the model wrote in each step, with the template's end of turn."""
    rewards: tuple[float, ...]
    """Step rewards."""


@dataclass(frozen=True)
class Template:
    """How messages become text; `{role}` and `{content}` are filled in."""

    message: str
    """A finished message."""
    open_assistant: str
    """What stands before the model's text."""
    end: str
    """What ends the model's text."""
    tool_role: str
    """Role of tool answers."""
    thought: str
    """What the released data has in place of a thought (`react` only)."""
    roles: Mapping[str, str]
    """Names of roles that differ from the message's own."""


_IM = ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n")
TEMPLATES: dict[str, Template] = {
    "toolllama": Template(
        message="{role}:\n{content}\n",
        open_assistant="Assistant:\n",
        end="\n",
        tool_role="Function",
        thought="",
        roles={"system": "System", "user": "User", "assistant": "Assistant"},
    ),
    "qwen2": Template(*_IM, tool_role="function", thought="Thought: \n", roles={}),
    "llama3.1": Template(
        message="<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        open_assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        tool_role="function",
        thought="Thought: \n",
        roles={},
    ),
    "chatml": Template(*_IM, tool_role="tool", thought="", roles={}),
}


def to_offline(
    trajectory: Trajectory,
    step_rewards: Sequence[float],
    *,
    template: str = "chatml",
    actions: Literal["text", "react"] = "text",
) -> OfflineRow:
    """Turn one trajectory with its step rewards into a row.

    Args:
        trajectory: Prompt in `messages`, then the steps.
        step_rewards: One finite reward a step.
        template: A name of `TEMPLATES`.
        actions: `text`: what the model wrote; `react`: the calls as the released data writes them.

    Raises:
        DatasetError: If there are fewer or more rewards than steps, one is not finite, or a message has no text.
        UnknownNameError: If the template or the form of actions is unknown.
    """
    if template not in TEMPLATES:
        raise UnknownNameError("offline template", template, TEMPLATES)
    if actions not in ("text", "react"):
        raise UnknownNameError("form of actions", actions, ("text", "react"))
    if len(step_rewards) != len(trajectory.steps) or not trajectory.steps:
        raise DatasetError(
            f"trajectory {trajectory.id!r}: {len(step_rewards)} rewards for {len(trajectory.steps)} steps"
        )
    if not all(math.isfinite(reward) for reward in step_rewards):
        raise DatasetError(f"trajectory {trajectory.id!r}: a step reward is not finite: {list(step_rewards)}")
    form = TEMPLATES[template]
    before = "".join(_message(form, message, trajectory.id) for message in trajectory.messages)
    prompts, responses = [], []
    for step in trajectory.steps:
        prompts.append(before + form.open_assistant)
        responses.append((_react(step, form) if actions == "react" else step.text) + form.end)
        before = "".join(
            form.message.format(role=form.roles.get(form.tool_role, form.tool_role), content=result.content)
            for result in step.results
        )
    return OfflineRow(tuple(prompts), tuple(responses), tuple(float(reward) for reward in step_rewards))


def _message(form: Template, message: Mapping[str, Any], where: str | None) -> str:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise DatasetError(f"trajectory {where!r}: a message has no role and text: {str(message)[:200]}")
    role = form.tool_role if role == "tool" else role
    return form.message.format(role=form.roles.get(role, role), content=content)


def _react(step: Step, form: Template) -> str:
    if not step.calls:
        return step.text
    return form.thought + "\n".join(
        f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False, default=str)}"
        for call in step.calls
    )


def write_offline(path: Path, rows: Iterable[OfflineRow]) -> int:
    """Write rows to a tab-separated file; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["prompt", "response", "reward"])
        for row in rows:
            # Tabs and line breaks are escaped by repr, so that a row is a line.
            writer.writerow([repr(list(row.prompts)), repr(list(row.responses)), repr(list(row.rewards))])
            count += 1
    return count


def read_offline(path: Path) -> Iterator[OfflineRow]:
    """Read such a file, the authors' own included; cells are literals and nothing in them is executed.

    Raises:
        DatasetError: If the header is wrong, a cell is no list of its kind, or the lists of a row differ in length.
    """
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        header = next(reader, [])
        if header != ["prompt", "response", "reward"]:
            raise DatasetError(f"{path}: header {header}, wanted prompt, response, reward")
        for number, cells in enumerate(reader, start=1):
            yield _row(cells, f"{path}: row {number}")


def _row(cells: Sequence[str], where: str) -> OfflineRow:
    if len(cells) != 3:
        raise DatasetError(f"{where}: {len(cells)} cells, wanted 3")
    try:
        prompts, responses, rewards = (ast.literal_eval(cell) for cell in cells)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as err:
        raise DatasetError(f"{where}: a cell is no Python literal: {err}") from err
    for name, values, kinds in (
        ("prompt", prompts, str),
        ("response", responses, str),
        ("reward", rewards, (int, float)),
    ):
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            raise DatasetError(f"{where}: {name} is no list of its kind: {str(values)[:80]}")
    if not len(prompts) == len(responses) == len(rewards):
        raise DatasetError(f"{where}: {len(prompts)} prompts, {len(responses)} responses, {len(rewards)} rewards")
    return OfflineRow(tuple(prompts), tuple(responses), tuple(float(reward) for reward in rewards))
