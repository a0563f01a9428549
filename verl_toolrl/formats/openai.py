"""OpenAI message objects: calls are structure, not text.

    {"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\":
        \\"Paris\\"}"}}]}

Read from an object or from its JSON text; text that is no such object is an answer without calls. Offsets of calls are
None, because arguments are JSON inside JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import JsonReader, open_brackets
from verl_toolrl.trajectory import ToolCall

__all__ = ["OpenAIDialect"]


class OpenAIDialect(Dialect):
    """An assistant message of the Chat Completions API."""

    name = "openai"
    foreign_marks = ("tool_call", "function", "mistral", "python_tag", "react", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a message apart; see `Dialect.read`."""
        reading, json_reader = Reading(), JsonReader()
        message = text if isinstance(text, Mapping) else _message(text, json_reader)
        if message is None:
            message = {"content": text}
            if text.lstrip().startswith("{"):
                reading.unparsed.append(Problem((0, len(text)), "a message that is not valid JSON"))
        for key in ("reasoning_content", "reasoning"):
            if isinstance(message.get(key), str):
                reading.thoughts.append(message[key])
                break
        content = _content(message.get("content"))
        reading.said.append(content)
        if not reading.unparsed:
            reading.foreign.extend(foreign_calls(content, 0, len(content), self.foreign_marks))
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, (list, tuple)):
            reading.unparsed.append(Problem((0, 0), f"tool_calls must be a list, got {type(calls).__name__}"))
            calls = None
        for index, call in enumerate(calls or ()):
            self._call(call, index, reading, json_reader)
        return reading.finish()

    def _call(self, call: Any, index: int, reading: Reading, json_reader: JsonReader) -> None:
        where = f"tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            reading.unparsed.append(Problem((0, 0), f"{where}: no function with a name"))
            return
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = self._arguments(arguments, where, reading, json_reader)
        elif isinstance(arguments, Mapping):
            reading.repaired.append(Problem((0, 0), f"{where}: arguments as an object instead of JSON text"))
        if not isinstance(arguments, Mapping):
            reading.unparsed.append(Problem((0, 0), f"{where}: arguments are no JSON object"))
            return
        identifier = call.get("id")
        reading.calls.append(ToolCall(name, dict(arguments), identifier if isinstance(identifier, str) else None))

    def _arguments(self, text: str, where: str, reading: Reading, json_reader: JsonReader) -> Any:
        values, _, reason = json_reader.exact(text, 0, len(text))
        if reason is None and len(values) == 1:
            return values[0].value
        repaired = None
        if text.lstrip().startswith("{") and open_brackets(text) <= 0:
            repaired = json_reader.repair(text, 0, len(text))
        if not repaired:
            return None
        reading.repaired.append(Problem((0, 0), f"{where}: {repaired[0].repair}"))
        return repaired[0].value

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write the message as JSON text; `message` gives the object."""
        return json.dumps(self.message(calls, thought=thought, response=response), ensure_ascii=False)

    def message(
        self, calls: Sequence[ToolCall], *, thought: str | None = None, response: str | None = None
    ) -> dict[str, Any]:
        """Return the message as an object; calls without an id get `call_<n>`."""
        message: dict[str, Any] = {"role": "assistant", "content": response}
        if thought is not None:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id or f"call_{index}",
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
                    },
                }
                for index, call in enumerate(calls)
            ]
        return message


def _message(text: str, json_reader: JsonReader) -> Mapping[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    values, _, reason = json_reader.exact(text, 0, len(text))
    if reason is not None or len(values) != 1 or not isinstance(values[0].value, dict):
        return None
    message: dict[str, Any] = values[0].value
    return message if {"tool_calls", "content", "role"} & set(message) else None


def _content(content: Any) -> str:
    """Return the text of a content, which is text or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "".join(part for part in parts if isinstance(part, str))
