"""Public layouts of tool-use data, read into dialogues; one function a layout.

    openai   {"messages": [...], "tools": [...]}: chat messages with `tool_calls`; `tools` a list or its JSON text. The
             older API's `functions` and `function_call` too
    toolace  {"system": "... [{...}] ...", "conversations": [{"from", "value"}]}: Team-ACE/ToolACE; tools as a JSON list
             inside the system text, calls as `[Name(key=value), ...]`
    xlam     {"query", "answers", "tools"}: Salesforce/xlam-function-calling-60k; the latter two are JSON texts.
             MadeAgents/XLAM-7.5k-Irrelevance has the same layout with empty answers
    hammer   {"instruction", "input", "output"}: what MadeAgents/Hammer's data_processing.py writes after masking names;
             tools and query between marks inside the instruction, calls as a fenced JSON list in the output

What cannot be read raises `DatasetError` and says what was found and what was wanted; the caller adds the row's number.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_toolrl.data.bracket_calls import answer_calls
from verl_toolrl.data.dialogues import Answer, Dialogue, Observation, Question
from verl_toolrl.errors import DatasetError
from verl_toolrl.formats.tool_list import read_tools
from verl_toolrl.trajectory import ToolCall

__all__ = ["LAYOUTS", "detect_layout"]

NO_CALL = "None of the tools can serve this request."
"""Stands in where a source wants no call and gives no answer (XLAM-7.5k-Irrelevance, Hammer)."""


def detect_layout(row: Any) -> str:
    """Return the layout that a row has by its keys.

    Raises:
        DatasetError: If it has none of them.
    """
    keys = set(row) if isinstance(row, Mapping) else set()
    for name, wanted in _KEYS.items():
        if wanted <= keys:
            return name
    raise DatasetError(
        f"keys {sorted(keys) or type(row).__name__}: no layout; known: "
        + "; ".join(f"{name} ({', '.join(sorted(wanted))})" for name, wanted in _KEYS.items())
    )


def read_openai(row: Mapping[str, Any]) -> Dialogue:
    """Read chat messages; `functions` and `function_call` of the older API too."""
    messages = _wanted(row, "messages", list)
    turns: list[Question | Answer | Observation] = []
    system: list[str] = []
    called: dict[str, str] = {}  # id of a call -> name of its tool, which the message of its result may leave out
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise DatasetError(f"messages[{index}]: {message!r:.80}, wanted an object with role and content")
        role, content = message["role"], _text(message.get("content"), f"messages[{index}].content")
        if role in ("system", "developer"):
            if turns:
                raise DatasetError(f"messages[{index}]: a {role} message in the middle, wanted it first")
            system.append(content)
        elif role == "user":
            turns.append(Question(content))
        elif role == "assistant":
            calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
            where = f"messages[{index}].tool_calls"
            thought, said = _thought(message, content)
            read = tuple(_call(call, f"{where}[{n}]") for n, call in enumerate(calls))
            called.update({str(call["id"]): each.name for call, each in zip(calls, read) if call.get("id") is not None})
            turns.append(Answer(read, said, thought))
        elif role in ("tool", "function"):
            name = message.get("name") or called.get(str(message.get("tool_call_id")))
            _add_result(turns, {"name": name, "results": _json_or_text(content)})
        else:
            raise DatasetError(f"messages[{index}]: role {role!r}, wanted system, user, assistant or tool")
    return Dialogue(_tools(row.get("tools") or row.get("functions")), _without_end(turns), "\n\n".join(system) or None)


def read_toolace(row: Mapping[str, Any]) -> Dialogue:
    """Read ToolACE: tools in the system text, calls in brackets; what else that text says is kept."""
    listed, system = _list_inside(_wanted(row, "system", str), "system")
    tools = _tools(listed)
    names = [tool["function"]["name"] for tool in tools]
    turns: list[Question | Answer | Observation] = []
    for index, message in enumerate(_wanted(row, "conversations", list)):
        where = f"conversations[{index}]"
        if not isinstance(message, Mapping) or not {"from", "value"} <= set(message):
            raise DatasetError(f"{where}: {message!r:.80}, wanted an object with from and value")
        speaker, value = message["from"], _text(message["value"], f"{where}.value").strip()
        if speaker in ("user", "human"):
            turns.append(Question(value))
        elif speaker in ("assistant", "gpt"):
            calls = answer_calls(value, names, where)
            turns.append(Answer(calls, None if calls else value))
        elif speaker in ("tool", "observation", "function"):
            results = _json_or_text(value)
            for result in results if isinstance(results, list) else [results]:
                _add_result(turns, result)
        else:
            raise DatasetError(f"{where}: from {speaker!r}, wanted user, assistant or tool")
    said = re.sub(r"[ \t]*\n\s*\n", "\n\n", _FORM.sub("", system)).strip()
    return Dialogue(tools, _without_end(turns), said or None)


def read_xlam(row: Mapping[str, Any]) -> Dialogue:
    """Read xLAM: a question and its calls."""
    answers = _decoded(row["answers"], "answers")
    if not isinstance(answers, list):
        raise DatasetError(f"answers: {type(answers).__name__}, wanted a list of calls")
    calls = tuple(_call(call, f"answers[{index}]") for index, call in enumerate(answers))
    question = Question(_wanted(row, "query", str))
    return Dialogue(_tools(_decoded(row["tools"], "tools")), (question, _single(calls)))


def read_hammer(row: Mapping[str, Any]) -> Dialogue:
    """Read what Hammer trains on: marks around tools and query, a fenced list of calls."""
    prompt = _wanted(row, "instruction", str)
    tools = _between(prompt, "AVAILABLE TOOLS")
    output = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", _wanted(row, "output", str))
    answers = _decoded(output, "output")
    if not isinstance(answers, list):
        raise DatasetError(f"output: {output[:80]!r}, wanted a list of calls")
    calls = tuple(_call(call, f"output[{index}]") for index, call in enumerate(answers))
    question = _between(prompt, "QUERY").strip()
    return Dialogue(_tools(_decoded(tools, "tools between the marks")), (Question(question), _single(calls)))


LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Dialogue]] = {
    "openai": read_openai,
    "toolace": read_toolace,
    "xlam": read_xlam,
    "hammer": read_hammer,
}
"""Layout -> function that reads a row of it."""

_KEYS = {
    "openai": {"messages"},
    "toolace": {"system", "conversations"},
    "xlam": {"query", "answers", "tools"},
    "hammer": {"instruction", "output"},
}


# What ToolACE's system texts say of their list of tools and of how calls are written; our prompt has another form.
_FORM = re.compile(
    r"here is a list of functions[^\n]*?:"
    r"|should you decide to return the function call(?:\(s\))?[.,\s]*"
    r"|[^.\n]*\[\w+\([^\n]*?\)\]\.?"  # calls in brackets, and the sentence around them
    r"|no other text must be included\.?"
    r"|you should only return the function call[^.\n]*\.?",
    re.IGNORECASE,
)


def _single(calls: tuple[ToolCall, ...]) -> Answer:
    return Answer(calls, None if calls else NO_CALL)


def _add_result(turns: list[Question | Answer | Observation], result: Any) -> None:
    if turns and isinstance(turns[-1], Observation):
        turns[-1] = Observation((*turns[-1].results, result))
    elif turns and isinstance(turns[-1], Answer) and turns[-1].calls:
        turns.append(Observation((result,)))
    else:
        raise DatasetError("a result of a tool without a call before it")


def _without_end(turns: Sequence[Question | Answer | Observation]) -> tuple[Question | Answer | Observation, ...]:
    """Leave out what follows the last answer: there is nothing to learn from it."""
    end = max((index for index, turn in enumerate(turns) if isinstance(turn, Answer)), default=len(turns) - 1)
    return tuple(turns[: end + 1])


def _thought(message: Mapping[str, Any], content: str) -> tuple[str | None, str | None]:
    """Return thought and text of an assistant's message: `reasoning_content`, or a leading `<think>` block."""
    given = message.get("reasoning_content") or message.get("reasoning")
    match = re.match(r"\s*<think>(.*?)</think>\s*", content, re.DOTALL)
    if match and not given:
        given, content = match.group(1), content[match.end() :]
    return (str(given).strip() or None if given else None), (content.strip() or None)


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DatasetError(f"{where}: {value!r:.80}, wanted an object with name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = _decoded(arguments, f"{where} ({function['name']}): arguments") if arguments else {}
    if not isinstance(arguments, Mapping):
        raise DatasetError(f"{where} ({function['name']}): arguments are {type(arguments).__name__}, wanted an object")
    return ToolCall(function["name"], dict(arguments))


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str):
        value = _decoded(value, "tools")
    tools = [_repaired_schema(tool) for tool in value] if isinstance(value, list) else value
    return tuple({"type": "function", "function": dict(tool)} for tool in read_tools(tools))


_JSON_TYPES = {
    "dict": "object",
    "str": "string",
    "int": "integer",
    "float": "number",
    "list": "array",
    "bool": "boolean",
}


def _repaired_schema(tool: Any) -> Any:
    """Turn the words for types that ToolACE and BFCL use (`dict`, `float`) into those of JSON Schema."""
    if isinstance(tool, Mapping):
        return {
            key: _JSON_TYPES.get(value, value) if key == "type" and isinstance(value, str) else _repaired_schema(value)
            for key, value in tool.items()
        }
    return [_repaired_schema(item) for item in tool] if isinstance(tool, list) else tool


def _list_inside(text: str, where: str) -> tuple[Any, str]:
    """Return the first JSON list of objects inside a text, and the text around it."""
    for match in re.finditer(r"\[\s*\{", text):
        try:
            found, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        return found, f"{text[: match.start()].rstrip()}\n{text[end:].lstrip(' .')}"
    raise DatasetError(f"{where}: {text[:80]!r}: no JSON list of tools in it")


def _between(text: str, mark: str) -> str:
    match = re.search(rf"\[BEGIN OF {mark}\]\n(.*?)\n?\[END OF {mark}\]", text, re.DOTALL)
    if match is None:
        raise DatasetError(f"instruction: {text[:60]!r}: no [BEGIN OF {mark}] ... [END OF {mark}]")
    return match.group(1)


def _decoded(value: Any, where: str) -> Any:
    """Return a value, or what its JSON text says; Python's own notation too, which Hammer's script writes for lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as err:
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise DatasetError(f"{where}: {value[:80]!r}: not JSON ({err})") from err


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wanted(row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    if not isinstance(value, kind):
        raise DatasetError(f"{key}: {type(value).__name__} (keys: {', '.join(map(str, row))}), wanted {kind.__name__}")
    return value


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # parts of OpenAI's content
        value = "".join(part.get("text", "") for part in value if isinstance(part, Mapping))
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {type(value).__name__}, wanted text")
    return value
