"""SuccCalling: did a call succeed? From what really happened, not from how the answer reads to a language model.

A call succeeds when its outcome is `OK`, its arguments fit the tool's schema (where one is given) and the answer does
not report a failure of its own (content rules, for tools that answer errors with a normal result). StepTool
(arXiv:2410.07745v4) defines the reward as format and content of the call; the released rule is
`steptool_released.released_success`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

__all__ = ["CallCheck", "ContentRules", "SuccCalling"]

CallCheck = Callable[[ToolCall], str | None]
"""Returns why a call breaks its tool's schema, or None; e.g. a closure over JSON-schema validators."""


@dataclass(frozen=True)
class ContentRules:
    """When the text of an answer reports a failure, although the call came back."""

    empty: bool = True
    """An empty answer is a failure (null and blank text too; an empty list is an answer)."""
    error_fields: tuple[str, ...] = ("error", "errors")
    """A JSON object with one of these fields set (not empty, null, false, 0 or a word for it) is a failure."""
    success_fields: tuple[str, ...] = ("success", "ok")
    """A JSON object with false in one of these fields is a failure."""
    status_fields: tuple[str, ...] = ("status", "status_code", "statusCode")
    """A JSON object with a number of 400 or more (or "error") in one of these fields is a failure."""
    nested_field: str = "response"
    """A JSON object in this field is judged too (ToolBench wraps answers as {"error": ..., "response": ...})."""
    prefixes: tuple[str, ...] = ("error:", "traceback (most recent call last)", "exception:")
    """Plain text that starts so, in any case, is a failure."""

    def failure(self, content: str) -> bool:
        """Whether the content reports a failure; never raises."""
        text = content.strip()
        if not text:
            return self.empty
        if text[0] in '{"n':  # an object, a text or null; anything else is an answer as it stands
            try:
                return self._bad(json.loads(text))
            except (ValueError, RecursionError):
                pass
        return text[:64].lower().startswith(self.prefixes)

    def _bad(self, value: Any, depth: int = 0) -> bool:
        if value is None or isinstance(value, str):
            return self.empty if not value or value.isspace() else value[:64].lower().startswith(self.prefixes)
        if not isinstance(value, dict):
            return False
        if any(_is_set(value.get(name)) for name in self.error_fields):
            return True
        if any(value.get(name) is False for name in self.success_fields):
            return True
        for name in self.status_fields:
            status: Any = value.get(name)
            number = isinstance(status, (int, float)) and not isinstance(status, bool)
            if status == "error" or (number and status >= 400):
                return True
        # One level only: deeper fields called "response" belong to the tool's own data.
        return depth == 0 and self.nested_field in value and self._bad(value[self.nested_field], 1)


def _is_set(error: Any) -> bool:
    if isinstance(error, str):
        return error.strip().lower() not in ("", "none", "null", "false", "0", "no", "no error")
    return bool(error)


@dataclass(frozen=True)
class SuccCalling:
    """Whether a call succeeded; a small picklable callable (with a `check` that pickles)."""

    rules: ContentRules | None = ContentRules()
    """None: the outcome alone decides."""
    check: CallCheck | None = None
    """Schema check for calls whose outcome was recorded without one."""

    def __call__(self, call: ToolCall, result: ToolResult | None) -> bool:
        """Return True for a success; a call without a result did not succeed."""
        if result is None or result.outcome is not Outcome.OK:
            return False
        if self.check is not None and self.check(call) is not None:
            return False
        return self.rules is None or not self.rules.failure(result.content)
