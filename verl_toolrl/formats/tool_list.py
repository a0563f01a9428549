"""Schemas of the tools on offer: from a column `tools` or `extra_info.tools`, or read back from ToolRL's prompt.

ToolRL's system prompt lists tools in three lines each, with its own words for types:

    1. Name: get_news
    Description: Retrieve news.
    Parameters: {"page": {"description": "The page.", "type": "int, optional", "default": "1"}}

(Format: qiancheng0/ToolRL@8cee13e, dataset/rlla_4k.) A default of "" means none. xLAM and Hammer write the parameters
of a schema in the same way; there, what is neither optional by its type nor has a default is required. The authors'
prompts do not say as much (their truths leave out parameters that nothing marks), so that what is read from a prompt
requires nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from verl_toolrl.errors import DatasetError
from verl_toolrl.formats.type_texts import type_schema
from verl_toolrl.schema import as_list

__all__ = ["read_tools", "row_tools", "tools_from_prompt"]

Tool = Mapping[str, Any]
"""`name`, `description` and `parameters`, a JSON Schema of type object."""

_ENTRY = re.compile(
    r"^\d+\. Name: (.*)\n"
    r"Description: ((?:(?!^Parameters: |^\d+\. Name: ).*\n)*)"
    r"Parameters: (.*)$",
    re.MULTILINE,
)


def read_tools(tools: Any, where: str = "tools") -> tuple[Tool, ...]:
    """Bring schemas into one form.

    Args:
        tools: A list of schemas (flat, or OpenAI's with `function`), its JSON text, or None.
        where: How the message of an error names them.

    Raises:
        DatasetError: If they cannot be read.
    """
    if tools is None:
        return ()
    try:
        if isinstance(tools, str):
            return _from_json(tools)
        items = as_list(tools)
        if items is None:
            raise DatasetError(f"must be a list of schemas or its JSON text, got {type(tools).__name__}")
        return tuple(_tool(item, index) for index, item in enumerate(items))
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err


def row_tools(row: Mapping[str, Any], where: str = "row") -> tuple[Tool, ...]:
    """Return the tools of a row: column `tools`, else `extra_info.tools`, else those of ToolRL's prompt, else nothing.

    Raises:
        DatasetError: If they cannot be read; the text names the place.
    """
    if row.get("tools") is not None:
        return read_tools(row["tools"], f"{where}: column 'tools'")
    extra = row.get("extra_info")
    if isinstance(extra, Mapping) and extra.get("tools") is not None:
        return read_tools(extra["tools"], f"{where}: extra_info.tools")
    for message in as_list(row.get("prompt")) or ():
        if isinstance(message, Mapping) and isinstance(message.get("content"), str):
            tools = tools_from_prompt(message["content"])
            if tools:
                return tools
    return ()


@lru_cache(maxsize=4096)
def tools_from_prompt(text: str) -> tuple[Tool, ...]:
    """Read the tools that a prompt in ToolRL's format lists; empty where it lists none that can be read."""
    found = []
    for entry in _ENTRY.finditer(text):
        try:
            parameters = json.loads(entry.group(3))
        except (ValueError, RecursionError):
            continue
        if isinstance(parameters, dict):
            found.append(
                {
                    "name": entry.group(1),
                    "description": entry.group(2).strip(),
                    "parameters": {
                        "type": "object",
                        "properties": {key: _parameter(value)[0] for key, value in parameters.items()},
                    },
                }
            )
    return tuple(found)


@lru_cache(maxsize=4096)
def _from_json(text: str) -> tuple[Tool, ...]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise DatasetError(f"not JSON ({err})") from err
    if not isinstance(items, list):
        raise DatasetError(f"must be a JSON list of schemas, got {type(items).__name__}")
    return tuple(_tool(item, index) for index, item in enumerate(items))


def _tool(item: Any, index: int) -> Tool:
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DatasetError(f"[{index}] has no 'name'")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise DatasetError(f"[{index}] ({function['name']}): parameters must be a JSON Schema")
    if _is_flat(parameters):
        parameters = _from_flat(parameters)
    return {"name": function["name"], "description": function.get("description") or "", "parameters": parameters}


def _is_flat(parameters: Mapping[str, Any]) -> bool:
    """Whether these are ToolRL's own form (parameter -> description, type, default) and no JSON Schema."""
    if not parameters or not all(isinstance(value, Mapping) for value in parameters.values()):
        return False
    # A parameter may itself be called `properties`: it has texts where a JSON Schema has further schemas.
    inner = parameters.get("properties")
    return inner is None or not all(isinstance(value, (Mapping, bool)) for value in inner.values())


def _from_flat(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Turn ToolRL's own form into a JSON Schema."""
    read = {key: _parameter(value) for key, value in parameters.items()}
    required = [key for key, (schema, optional) in read.items() if not optional and "default" not in schema]
    schema = {"type": "object", "properties": {key: schema for key, (schema, _) in read.items()}}
    return {**schema, "required": required} if required else schema


def _parameter(value: Any) -> tuple[dict[str, Any], bool]:
    """Turn ToolRL's `description`, `type` and `default` into a JSON Schema, and say whether the type says optional."""
    if not isinstance(value, Mapping):
        return {}, False
    kind, optional = type_schema(value.get("type"))
    schema = {"description": str(value.get("description", "")), **kind}
    if value.get("default", "") != "":
        schema["default"] = value["default"]
    return schema, optional
