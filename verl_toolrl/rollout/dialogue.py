"""Three forms of a dialogue with tools: how calls are read, and in which messages answers come back.

    toolrl   ToolRL's tags. The model's message ends with `<tool_call>` lines; a user's message answers:
             <obs> [{"name": "get_weather", "results": {"sky": "clear"}}] </obs>
             (the form of the histories in qiancheng0/ToolRL@8cee13e, dataset/rlla_4k, where it stands in one message)
    native   function calling through the chat template: one message of role `tool` an answer, tools by the template;
             calls in the dialect of the model's family (Qwen and Hermes: `hermes`; Llama 3: `llama3_json`)
    react    Thought, Action, Action Input; a user's message `Observation: ...` answers (arXiv:2210.03629)

In `toolrl` and `react` the prompt itself shows the tools. `{tools}` in a message of the prompt is replaced by their
list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl_toolrl.errors import UnknownNameError
from verl_toolrl.formats import Dialect, ParsedResponse, get_dialect
from verl_toolrl.rollout.chat import Message
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

__all__ = ["DIALOGUES", "Dialogue", "NativeDialogue", "ReActDialogue", "ToolRLDialogue", "make_dialogue"]

Schemas = Sequence[Mapping[str, Any]]
"""Schemas of tools in OpenAI form."""

SLOT = "{tools}"
_REASONS = 3


class Dialogue:
    """One form of a dialogue; holds no state of a trajectory."""

    name: str
    """Name in recipes."""
    tools_in_template = False
    """Whether the chat template shows the tools; the model then writes calls in its family's dialect."""

    def __init__(self, dialect: str) -> None:
        self.dialect: Dialect = get_dialect(dialect)

    def messages(self, messages: Sequence[Message], tools: Schemas) -> list[dict[str, Any]]:
        """Return the prompt with the list of tools in place of `{tools}`."""
        out = []
        for message in messages:
            message = dict(message)
            if isinstance(message.get("content"), str) and SLOT in message["content"]:
                message["content"] = message["content"].replace(SLOT, self.tool_list(tools))
            out.append(message)
        return out

    def tool_list(self, tools: Schemas) -> str:
        """Return the text that stands for `{tools}`."""
        return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)

    def read(self, text: str, tools: Schemas, *, in_thought: bool = False) -> ParsedResponse:
        """Take an answer apart; never raises on what a model wrote."""
        return self.dialect.read(text, tools=tools, in_thought=in_thought)

    def observe(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult], unread: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the messages that answer one step.

        Args:
            calls: Calls that were read.
            results: One result a call.
            unread: Why pieces that look like calls could not be read; the model is told.
        """
        raise NotImplementedError

    def probe(self) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Return two answers in this form and what follows them, to try a chat template with."""
        call, result = ToolCall("look_up", {"key": "a b", "n": 3}), ToolResult(Outcome.OK, '{"sky": "clear"}')
        answers = [self._thinking([call]), self._thinking([call, call])]
        return answers, [self.observe([call], [result], []), self.observe([call, call], [result, result], [])]

    def _thinking(self, calls: Sequence[ToolCall]) -> str:
        return self.dialect.write(calls, thought="I look it up.")


def _note(unread: Sequence[str]) -> str:
    reasons = "; ".join(list(unread)[:_REASONS])
    return f"A tool call could not be read: {reasons}. Write it again."


class ToolRLDialogue(Dialogue):
    """ToolRL's tags and `<obs>`."""

    name = "toolrl"

    def __init__(self, dialect: str = "toolrl") -> None:
        super().__init__(dialect)

    def tool_list(self, tools: Schemas) -> str:
        """List tools as ToolRL's prompt does, three lines each."""
        return "\n".join(_entry(number, tool["function"]) for number, tool in enumerate(tools, 1))

    def observe(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult], unread: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Answer all calls of a step in one `<obs>`."""
        items = [
            f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "results": {_as_json(result.content)}}}'
            for call, result in zip(calls, results)
        ]
        if unread:
            items.append(f'{{"error": {json.dumps(_note(unread), ensure_ascii=False)}}}')
        return [{"role": "user", "content": f"<obs> [{', '.join(items)}] </obs>"}]


def _entry(number: int, function: Mapping[str, Any]) -> str:
    """One tool in ToolRL's prompt; see `verl_toolrl.formats.tool_list`, which reads it back."""
    schema = function.get("parameters") or {}
    required = set(schema.get("required") or ())
    parameters = {
        name: {
            "description": _description(each),
            "type": _kind(each) + ("" if name in required else ", optional"),
            "default": each.get("default", ""),
        }
        for name, each in (schema.get("properties") or {}).items()
    }
    return (
        f"{number}. Name: {function['name']}\n"
        f"Description: {function.get('description', '')}\n"
        f"Parameters: {json.dumps(parameters, ensure_ascii=False)}"
    )


def _description(schema: Mapping[str, Any]) -> str:
    """ToolRL's form has no place for the values that a parameter may take; they go behind its description."""
    text = str(schema.get("description", ""))
    if not schema.get("enum"):
        return text
    values = ", ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    return f"{text} One of: {values}.".lstrip()


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "any")
    return kind if isinstance(kind, str) else " or ".join(map(str, kind))


def _as_json(content: str) -> str:
    """Embed a tool's answer: as it is where it is JSON, else as a string."""
    if content[:1] in '{["-0123456789tfn' and content:
        try:
            json.loads(content)
            return content
        except (ValueError, RecursionError):
            pass
    return json.dumps(content, ensure_ascii=False)


class NativeDialogue(Dialogue):
    """Function calling as the model's own template has it."""

    name = "native"
    tools_in_template = True

    def __init__(self, dialect: str = "hermes") -> None:
        super().__init__(dialect)

    def observe(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult], unread: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Answer each call with a message of role `tool`."""
        out: list[dict[str, Any]] = [
            {"role": "tool", "name": call.name, "content": result.content} for call, result in zip(calls, results)
        ]
        if unread:
            out.append({"role": "tool", "name": "error", "content": _note(unread)})
        return out


class ReActDialogue(Dialogue):
    """Thought, Action, Action Input, Observation."""

    name = "react"

    def _thinking(self, calls: Sequence[ToolCall]) -> str:
        # Models that think in tags do so in this form, too, and it is the tags that templates drop.
        return "<think>\nI look it up.\n</think>\n\n" + self.dialect.write(calls)

    def __init__(self, dialect: str = "react") -> None:
        super().__init__(dialect)

    def tool_list(self, tools: Schemas) -> str:
        """List tools one a line, with the schema of their input."""
        lines = []
        for tool in tools:
            function = tool["function"]
            schema = json.dumps(function.get("parameters") or {}, ensure_ascii=False)
            lines.append(f"{function['name']}: {function.get('description', '')} Input: {schema}")
        return "\n".join(lines)

    def observe(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult], unread: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Answer each action with a line `Observation: ...`, all in one message."""
        lines = [f"Observation: {result.content}" for result in results]
        if unread:
            lines.append(f"Observation: {_note(unread)}")
        return [{"role": "user", "content": "\n".join(lines)}]


DIALOGUES: dict[str, type[Dialogue]] = {each.name: each for each in (ToolRLDialogue, NativeDialogue, ReActDialogue)}
"""Name -> form."""


def make_dialogue(name: str, dialect: str | None = None) -> Dialogue:
    """Build a form by name.

    Args:
        name: `toolrl`, `native` or `react`.
        dialect: How the model writes calls, where it is not the form's own (`native` with `llama3_json`).

    Raises:
        UnknownNameError: If there is no such form.
        ConfigError: If there is no such dialect.
    """
    if name not in DIALOGUES:
        raise UnknownNameError("dialogue", name, DIALOGUES)
    kind: Any = DIALOGUES[name]
    return kind() if dialect is None else kind(dialect)
