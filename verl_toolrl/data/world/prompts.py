"""From a task to messages: ToolRL's prompt (whole or short), or the plain chat of models with a template for tools.

ToolRL's prompt has the tools and the form of the answer in the system message and the dialogue so far in one user
message (structure: qiancheng0/ToolRL@8cee13e, dataset/rlla_4k; the wording is our own). Tools stand there in three
lines each: name, description, and the parameters as JSON with description, type and, where there is one, default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl_toolrl.data.world.generic import first_sentence
from verl_toolrl.data.world.tasks import Kind, Task
from verl_toolrl.errors import UnknownNameError
from verl_toolrl.formats import write_response
from verl_toolrl.toolbox import Tool
from verl_toolrl.trajectory import ToolCall

__all__ = [
    "STYLES",
    "Turn",
    "native_messages",
    "native_truth",
    "system_prompt",
    "thought_of",
    "tool_list",
    "toolrl_messages",
    "truth",
]

STYLES = ("short", "full")
"""Forms of ToolRL's prompt: `short` saves tokens where they are dear, `full` says all that ToolRL's own prompt says."""


@dataclass(frozen=True)
class Turn:
    """An earlier turn of the dialogue."""

    said: str
    """By the user."""
    answer: str
    """By the model, in the end."""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Any, ...] = ()
    """What the tools returned, one a call."""


_SHORT = """You are a helpful assistant that solves tasks with tool calls.

**Available Tools**
{tools}

**Output Format**
<think> Your thoughts </think>
<tool_call>
{{"name": "Tool name", "parameters": {{"Parameter name": "Parameter content"}}}}
</tool_call>
<response> Your answer, if no tool is called </response>"""

_FULL = """You are a helpful assistant in a dialogue. You solve tasks with tool calls, or answer yourself.

**Available Tools**
These tools may be called:
{tools}

**Steps for Each Turn**
1. **Think:** Work out what the user wants now, and what is known already.
2. **Decide on Tool Usage:** If a tool serves, choose it and its parameters.
3. **Respond Appropriately:** If no tool is needed, or none fits, answer the user.

**Output Format**
```plaintext
<think> Your thoughts </think>
<tool_call>
{{"name": "Tool name", "parameters": {{"Parameter name": "Parameter content", "...": "..."}}}}
{{"name": "...", "parameters": {{"...": "..."}}}}
</tool_call>
<response> Your answer to the user </response>
```

**Important Notes**
1. `<think>` always comes first. After it `<tool_call>`, `<response>`, or both.
2. Several calls may stand in one `<tool_call>`, a line each: a JSON object with "name" and "parameters". Parameters \
that are not needed are left out; without any, "parameters" is an empty object.
3. The dialogue so far is part of the task: what the user said, earlier `<tool_call>` and `<response>`, and what tools \
returned, as `<obs>`."""

_CLAUSE = 60
"""Characters over which the short style cuts what a parameter is at its first comma."""

NATIVE = (
    "You are a helpful assistant. Think first, in <think> and </think>. Then call a tool where one serves the user; "
    "answer yourself where none is needed or fits."
)
"""System message of rows whose tools the chat template writes; rewards that ask for a thought find one asked for."""


_WITHOUT = "I can answer without a tool."
_AFTER = "The tool has answered."


def thought_of(task: Task) -> str:
    """Return a short thought that leads to what is right."""
    if task.kind is Kind.TALK:
        return _WITHOUT
    return "None of the tools can do this." if task.kind is Kind.MISSING else _thought(task.calls)


def _thought(calls: Sequence[ToolCall]) -> str:
    return f"I should use {' and '.join(dict.fromkeys(call.name for call in calls))}."


def truth(task: Task) -> str:
    """Return the ground truth in ToolRL's tags."""
    return write_response(task.calls, thought=thought_of(task), response=task.answer)


def native_truth(calls: Sequence[ToolCall], answer: str | None) -> str:
    """Return the ground truth as the JSON text of an OpenAI message."""
    written = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}} for call in calls
    ]
    return json.dumps({"role": "assistant", "content": answer, "tool_calls": written}, ensure_ascii=False)


def toolrl_messages(
    task: Task, tools: Sequence[Tool], *, style: str = "short", history: Sequence[Turn] = ()
) -> list[dict[str, str]]:
    """Return system and user message of ToolRL's prompt."""
    system = (_FULL if style == "full" else _SHORT).format(tools=tool_list(tools, style=style))
    dialogue = "\n\n".join([*map(_toolrl_turn, history), f"<user> {task.question} </user>"])
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"**Dialogue Records History**\n{dialogue}"},
    ]


def _toolrl_turn(turn: Turn) -> str:
    parts = [f"<user> {turn.said} </user>"]
    if turn.calls:
        found = [{"name": call.name, "results": result} for call, result in zip(turn.calls, turn.results, strict=True)]
        calls = write_response(turn.calls, thought=_thought(turn.calls))
        parts.append(f"{calls}\n<obs> {json.dumps(found, ensure_ascii=False)} </obs>")
    parts.append(write_response((), thought=_AFTER if turn.calls else _WITHOUT, response=turn.answer))
    return "\n\n".join(parts)


def native_messages(
    task: Task,
    *,
    history: Sequence[Turn] = (),
    dialect: str = "hermes",
    schemas: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, str]]:
    """Return messages for a chat template that writes the tools itself.

    Args:
        task: Its question stands last.
        history: Earlier turns; what tools returned is a message of role `tool`.
        dialect: In which earlier calls are written.
        schemas: Of the tools, which some dialects need to write a call.
    """
    messages = [{"role": "system", "content": NATIVE}]
    for turn in history:
        messages.append({"role": "user", "content": turn.said})
        if turn.calls:
            text = write_response(turn.calls, dialect, thought=_thought(turn.calls), tools=schemas)
            messages.append({"role": "assistant", "content": text})
            messages += [{"role": "tool", "content": json.dumps(result)} for result in turn.results]
        text = write_response((), dialect, thought=_AFTER if turn.calls else _WITHOUT, response=turn.answer)
        messages.append({"role": "assistant", "content": text})
    return [*messages, {"role": "user", "content": task.question}]


def system_prompt(schemas: Sequence[Mapping[str, Any]], *, style: str = "full") -> str:
    """Return the system message of ToolRL's prompt for tools given by their OpenAI schemas.

    Raises:
        ConfigError: If the style is unknown.
    """
    if style not in STYLES:
        raise UnknownNameError("style", style, STYLES)
    return (_FULL if style == "full" else _SHORT).format(tools=_entries(schemas, style))


def tool_list(tools: Sequence[Tool], *, style: str = "short") -> str:
    """Return the tools as ToolRL's prompt lists them.

    `short` keeps the first sentence of what a tool does and of what a parameter is, and writes a parameter as one text,
    `"quantity": "integer (how many pieces arrive)"`.
    """
    return _entries([tool.schema.to_dict() for tool in tools], style)


def _entries(schemas: Sequence[Mapping[str, Any]], style: str) -> str:
    entries = [_entry(json.dumps(dict(schema)), style == "short") for schema in schemas]
    return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, 1))


@lru_cache(maxsize=4096)
def _entry(schema: str, short: bool) -> str:
    function = json.loads(schema)["function"]
    parameters = function["parameters"]
    required = _required(parameters)
    shown = {
        key: _parameter(each, short, optional=key not in required)
        for key, each in (parameters.get("properties") or {}).items()
    }
    does = " ".join(function["description"].split())
    if short:
        does = re.split(r"; | and return ", first_sentence(does))[0]
    return f"Name: {function['name']}\nDescription: {does}\nParameters: {json.dumps(shown, ensure_ascii=False)}"


def _required(parameters: Mapping[str, Any]) -> Sequence[str]:
    required = parameters.get("required")
    if isinstance(required, list):
        return required
    # Draft 3 and some data sets write a boolean at the property itself.
    properties = parameters.get("properties") or {}
    return [key for key, each in properties.items() if isinstance(each, Mapping) and each.get("required") is True]


def _parameter(schema: Any, short: bool, *, optional: bool) -> dict[str, Any] | str:
    schema = schema if isinstance(schema, Mapping) else {}
    says = " ".join(str(schema.get("description") or "").split())
    values = schema.get("enum")
    if short:
        says = re.split(r": ", first_sentence(says))[0]
        says = says if len(says) <= _CLAUSE else re.split("[,;] ", says)[0]
    if isinstance(values, list) and (not short or len(values) <= 4):
        listed = ", ".join(map(str, values))
        says = f"{says}: {listed}".removeprefix(": ") if short else f"{says} One of: {listed}.".strip()
    kind = _kind(schema)
    if short:
        kind = f"{kind}, optional" if optional else kind
        return f"{kind} ({says[:1].lower()}{says[1:]})" if says else kind
    shown = {"description": says, "type": f"{kind}, optional" if optional else kind}
    if schema.get("default") not in (None, ""):
        shown["default"] = schema["default"]
    else:
        shown["default"] = ""
    return shown


def _kind(schema: Mapping[str, Any]) -> str:
    """Return the type in the words of ToolRL's prompt: `integer`, `List[integer]`, `Union[integer, string]`."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return _either([_kind({**schema, "type": each}) for each in kind if each != "null"]) or "null"
    if kind is None:
        options = [each for each in schema.get("anyOf", schema.get("oneOf", ())) if isinstance(each, Mapping)]
        if typed := _either([_kind(each) for each in options if each.get("type") not in (None, "null")]):
            return typed
        kind = "object" if "properties" in schema or "$ref" in schema else "string" if "enum" in schema else "any"
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        inner = _kind(schema["items"])
        return "array" if inner in ("any", "null") else f"List[{inner}]"
    return str(kind)


def _either(kinds: Sequence[str]) -> str:
    different = list(dict.fromkeys(kinds))
    return f"Union[{', '.join(different)}]" if len(different) > 1 else "".join(different)
