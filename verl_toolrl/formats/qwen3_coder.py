"""Qwen3-Coder's XML: one element a parameter, values as plain text.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

Source: the chat template of Qwen3-Coder (also Qwen3.5). Values carry no type, so the tool's schema decides where there
is one: a text for type string, else JSON or a Python literal. Without a schema a value is JSON if it can be read as
JSON, and text if not; the writer puts text that could be mistaken into JSON quotes. A value ends at the closing tag
that is followed by the next parameter or by the end of the call, so that tags inside a value are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem, Reading
from verl_toolrl.formats.foreign import foreign_calls
from verl_toolrl.formats.json_text import MAX_ITEMS, JsonReader, dump
from verl_toolrl.formats.thoughts import skip_space, skip_thought
from verl_toolrl.trajectory import ToolCall

__all__ = ["Qwen3CoderDialect"]

_FUNCTION = re.compile(r"<function=([^>\n]{1,256})>\s*")
_OPENING = re.compile(r"(?:<tool_call>\s*)?<function=|<tool_call>")
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,256})>")
_FUNCTION_END = re.compile(r"\s*</function>(?:\s*</tool_call>)?")
# The closing tag of a parameter, or, where the model forgot it, the next parameter on a line of its own or the end of
# the call.
_VALUE_END = re.compile(
    r"\n?</parameter>(?=\s*(?:<parameter=|</function>))|\n(?=<parameter=[^>\n]{1,256}>\n)|\n?(?=</function>\s*</tool_call>)"
)
_PROTECTED = ("</parameter>", "<parameter=", "</function>", "<function=", "<tool_call>", "</tool_call>", "</think>")
_LITERALS = {"True": True, "False": False, "None": None}


class Qwen3CoderDialect(Dialect):
    """Text outside calls is for the user."""

    name = "qwen3_coder"
    foreign_marks = ("mistral", "python_tag", "react", "json", "pythonic")

    def read(self, text: Any, *, tools: Iterable[Mapping[str, Any]] = (), in_thought: bool = False) -> ParsedResponse:
        """Take a response apart; see `Dialect.read`."""
        reading, types = Reading(), _types(tools)
        position = skip_thought(text, reading, in_thought)
        while position < len(text):
            opening = _OPENING.search(text, position)
            begin = opening.start() if opening else len(text)
            self._plain(text, position, begin, reading)
            if opening is None:
                break
            if len(reading.calls) + len(reading.unparsed) + len(reading.foreign) >= MAX_ITEMS:
                reading.unparsed.append(Problem((begin, len(text)), f"more than {MAX_ITEMS} calls"))
                break
            position = self._block(text, begin, opening, reading, types)
        return reading.finish()

    def _plain(self, text: str, start: int, end: int, reading: Reading) -> None:
        reading.said.append(text[start:end])
        reading.foreign.extend(foreign_calls(text, start, end, self.foreign_marks))

    def _block(
        self, text: str, begin: int, opening: re.Match[str], reading: Reading, types: dict[str, dict[str, Any]]
    ) -> int:
        """Read one call; return the offset behind it."""
        function = _FUNCTION.match(text, opening.end() - len("<function="))
        if not opening.group().endswith("<function=") or function is None:
            end = text.find("</tool_call>", opening.end())
            stop = end + len("</tool_call>") if end >= 0 else len(text)
            inner = text[opening.end() : end if end >= 0 else None].lstrip()
            found = reading.foreign if end >= 0 and inner.startswith(("{", "[")) else reading.unparsed
            found.append(
                Problem((begin, stop), "no <function=…> in the block" if end >= 0 else "</tool_call> is missing")
            )
            return stop
        position, name = function.end(), function.group(1)
        arguments: dict[str, Any] = {}
        count = 0
        while parameter := _PARAMETER.match(text, position):
            value_end = _VALUE_END.search(text, parameter.end())
            count += 1
            if value_end is None or count > MAX_ITEMS:
                reason = "is not closed" if value_end is None else f"is one of more than {MAX_ITEMS}"
                reading.unparsed.append(Problem((begin, len(text)), f"parameter {parameter.group(1)!r} {reason}"))
                return len(text)
            if "</parameter>" not in value_end.group():
                reading.repaired.append(Problem((parameter.start(), value_end.end()), "</parameter> is missing"))
            raw = text[parameter.end() : value_end.start()].removeprefix("\n")
            arguments[parameter.group(1)] = _value(raw, types.get(name, {}).get(parameter.group(1)))
            position = skip_space(text, value_end.end())
        closing = _FUNCTION_END.match(text, position)
        if closing is None or not closing.group().endswith("</tool_call>"):
            end_of_call = closing.end() if closing else len(text)
            if closing is None or not _function_only(text, begin, end_of_call):
                reason = "</function> is missing" if closing is None else "</tool_call> is missing"
                reading.unparsed.append(Problem((begin, end_of_call), reason))
                return end_of_call
        if not text.startswith("<tool_call>", begin):
            reading.repaired.append(Problem((begin, closing.end()), "<tool_call> is missing"))
        reading.calls.append(ToolCall(name, arguments, None, (begin, closing.end())))
        return closing.end()

    def write(
        self,
        calls: Sequence[ToolCall],
        *,
        thought: str | None = None,
        response: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> str:
        """Write calls; see `Dialect.write`. With `tools` the same schemas are needed to read the text."""
        if thought is not None and "</think>" in thought:
            raise self.refuse("a thought with </think> in it:", thought)
        if response is not None and any(mark in response for mark in _PROTECTED):
            raise self.refuse("a response with tags in it:", response)
        opening = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
        types = _types(tools)
        return opening + "\n".join(
            ([response] if response else []) + [self._call(call, types.get(call.name, {})) for call in calls]
        )

    def _call(self, call: ToolCall, types: Mapping[str, Any]) -> str:
        for name in (call.name, *call.arguments):
            if not name or len(name) > 256 or ">" in name or "\n" in name:
                raise self.refuse("a name", name)
        lines = ["<tool_call>", f"<function={call.name}>"]
        for key, value in call.arguments.items():
            lines += [f"<parameter={key}>", self._text(value, types.get(key)), "</parameter>"]
        return "\n".join([*lines, "</function>", "</tool_call>"])

    def _text(self, value: Any, kinds: Any) -> str:
        plain = isinstance(value, str) and not any(mark in value for mark in _PROTECTED)
        for text in ([value] if plain else []) + [dump(value, _PROTECTED)]:
            if _same(_value(text, kinds), value):
                return str(text)
        raise self.refuse("(its schema says string) the value", value)


def _function_only(text: str, begin: int, end: int) -> bool:
    """Whether a call without `<tool_call>` tags at all is complete."""
    return not text.startswith("<tool_call>", begin)


def _value(raw: str, kinds: frozenset[str] | None) -> Any:
    """Give a value its type.

    Args:
        raw: The text between the tags.
        kinds: Types that the schema allows; None where there is no schema.
    """
    if kinds == {"string"}:
        return raw
    values, _, reason = JsonReader().exact(raw, 0, len(raw))
    if reason is None and len(values) == 1:
        value = values[0].value
    elif kinds and raw.strip() in _LITERALS:
        value = _LITERALS[raw.strip()]
    else:
        return raw
    if kinds and "string" in kinds and not isinstance(value, str) and _kind(value) not in kinds:
        return raw
    return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {"NoneType": "null", "list": "array", "dict": "object"}.get(type(value).__name__, "string")


def _same(first: Any, second: Any) -> bool:
    return json.dumps(first) == json.dumps(second)


def _types(tools: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, frozenset[str]]]:
    """Return tool -> parameter -> types."""
    found: dict[str, dict[str, frozenset[str]]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            found[str(function.get("name"))] = {
                str(key): frozenset(_schema_types(schema)) for key, schema in properties.items()
            }
    return found


def _schema_types(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    kinds = {declared} if isinstance(declared, str) else set(declared or ())
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key) or ():
            kinds |= _schema_types(option)
    return {"number" if kind == "integer" else str(kind) for kind in kinds}
