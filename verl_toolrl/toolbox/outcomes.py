"""What a tool may raise, and how any exception becomes an `Outcome`.

An author who wants to say whose doing a failure was raises `ModelMistake`, `ToolError`, `CallRefused` or
`verl_toolrl.errors.InfrastructureError`. Everything else is sorted here, once: connection and resource failures are
infrastructure, a `TimeoutError` is a time-out, any other exception is the tool's own error.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import traceback

from verl_toolrl.errors import InfrastructureError, ToolRLError
from verl_toolrl.trajectory import Outcome

__all__ = ["CallRefused", "ModelMistake", "ToolError", "classify", "describe", "place_of"]


class ToolError(ToolRLError):
    """The tool understood the call and has to say no ("no such city"). The model reads the text."""


class ModelMistake(ToolRLError):
    """The arguments are to blame, in a way that no schema can express. The model reads the text."""


class CallRefused(ToolRLError):
    """A policy of the tool forbids the call (a host that is not on the allow-list). The model reads the text."""


# The machine, not the call: out of disk, memory or descriptors, or the other side is not there.
_INFRA_ERRNOS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.EAGAIN,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)


def classify(exc: BaseException, infrastructure: tuple[type[BaseException], ...] = ()) -> Outcome:
    """Say whose doing an exception was that escaped from a tool.

    Args:
        exc: What was raised. An exception group counts as its worst member: infrastructure before time-out before rest.
        infrastructure: Further classes that the tool's author declares to be failures of infrastructure.
    """
    members = getattr(exc, "exceptions", None)
    if isinstance(members, tuple) and members and type(exc).__name__.endswith("ExceptionGroup"):
        found = {classify(member, infrastructure) for member in members}
        return next((each for each in _WORST_FIRST if each in found), Outcome.TOOL_ERROR)
    if isinstance(exc, ModelMistake):
        return Outcome.MODEL_ERROR
    if isinstance(exc, CallRefused):
        return Outcome.REFUSED
    if isinstance(exc, ToolError):
        return Outcome.TOOL_ERROR
    if isinstance(exc, infrastructure) or isinstance(exc, InfrastructureError):
        return Outcome.INFRA_ERROR
    # asyncio.TimeoutError is a class of its own on Python 3.10.
    if isinstance(exc, (TimeoutError, asyncio.TimeoutError, socket.timeout)):
        return Outcome.TIMEOUT
    if isinstance(exc, (ConnectionError, MemoryError, socket.gaierror, EOFError)):
        return Outcome.INFRA_ERROR
    if isinstance(exc, OSError) and exc.errno in _INFRA_ERRNOS:
        return Outcome.INFRA_ERROR
    # httpx is looked up, not imported: a tool that raises its errors has loaded it.
    httpx = sys.modules.get("httpx")
    if httpx is not None and isinstance(exc, httpx.TransportError):
        return Outcome.TIMEOUT if isinstance(exc, httpx.TimeoutException) else Outcome.INFRA_ERROR
    return Outcome.TOOL_ERROR


_WORST_FIRST = (Outcome.INFRA_ERROR, Outcome.TIMEOUT, Outcome.TOOL_ERROR, Outcome.REFUSED, Outcome.MODEL_ERROR)


def describe(exc: BaseException) -> str:
    """Return `Class: text` in at most 500 characters, also for an exception whose own `__str__` raises."""
    try:
        text = str(exc)
    except BaseException:  # an exception that cannot be printed is still an answer, whatever printing it raised
        text = "(its text cannot be read)"
    if isinstance(exc, ToolRLError):
        return text[:2000]
    name = type(exc).__name__
    return f"{name}: {text}"[:500] if text else name


def place_of(exc: BaseException) -> str:
    """Return `file:line in function` of where an exception was raised."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "an unknown place"
