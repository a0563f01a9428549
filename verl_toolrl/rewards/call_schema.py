"""The schema part of SuccCalling: do a call's arguments fit the JSON schema of its tool?

For trajectories whose outcomes were recorded without a schema check (logs of other systems). Where our own rollout made
the trajectory, broken arguments already have the outcome `MODEL_ERROR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs

from verl_toolrl.errors import ToolDefinitionError
from verl_toolrl.trajectory import ToolCall

__all__ = ["SchemaCheck"]


class SchemaCheck:
    """Says why a call breaks its tool's schema; pickles.

    Args:
        tools: Tools in OpenAI's form, `{"type": "function", "function": {"name", "parameters"}}` or the inner object.

    Raises:
        ToolDefinitionError: If a tool has no name, a name is given twice, or a schema is invalid.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self.tools = list(tools)
        self._validators: dict[str, Any] = {}
        for number, tool in enumerate(self.tools):
            function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(name, str) or name in self._validators:
                raise ToolDefinitionError(f"tool {number}: name is {name!r}, wanted a text that no other tool has")
            try:
                self._validators[name] = jsonschema_rs.validator_for(function.get("parameters") or {"type": "object"})
            except (ValueError, TypeError) as err:
                raise ToolDefinitionError(f"tool {name!r}: parameters are no JSON schema: {err}") from err

    def __reduce__(self) -> tuple[type, tuple[Sequence[Mapping[str, Any]]]]:
        return type(self), (self.tools,)

    def __call__(self, call: ToolCall) -> str | None:
        """Return why the call breaks its schema, or None."""
        validator = self._validators.get(call.name)
        if validator is None:
            return f"unknown tool {call.name!r}"
        try:
            error = next(iter(validator.iter_errors(call.arguments)), None)
        except (ValueError, TypeError, RecursionError) as err:  # arguments that are no JSON
            return f"arguments are no JSON: {err}"
        return None if error is None else str(error.message)
