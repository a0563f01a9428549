"""What went wrong in a run: the lines of its log that say so.

A failed verl run ends in several nested tracebacks, Ray's prefix before each line, and often a page of shutdown noise
behind them. Looked for is the last exception that is not Ray's wrapper around another one, and the few messages that
outweigh any exception (Ray killed a worker for memory, the machine has no space).
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["clean_line", "last_error", "tail_of"]

_PREFIX = re.compile(r"^\s*(?:\x1b\[[0-9;]*m)*\([\w:. -]+?(?:\s+pid=\d+[^)]*)\)(?:\x1b\[[0-9;]*m)*\s?")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Refused|Failure))(?:\(\w+\))?\s*: ?(.*)$")
_WRAPPERS = ("RayTaskError", "InstantiationException", "HydraException")
_ENDINGS = ("SystemExit", "KeyboardInterrupt")
_DECISIVE = (
    (re.compile(r"node running low on memory|OutOfMemoryError|Ray memory monitor|workers? killed due to memory", re.I),
     "Ray ended a worker because the machine ran out of memory"),
    (re.compile(r"No space left on device", re.I), "No space left on device"),
)
_TAIL_BYTES = 400_000


def clean_line(line: str) -> str:
    """Strip colours and Ray's `(TaskRunnerV1 pid=123)` in front of a line."""
    return _ANSI.sub("", _PREFIX.sub("", line)).rstrip()


def tail_of(log: Path, size: int = _TAIL_BYTES) -> list[str]:
    """The last lines of a log, cleaned; empty when there is no log."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [clean_line(line) for line in re.split(r"[\r\n]+", text)]


def last_error(lines: list[str], *, most: int = 6) -> list[str]:
    """The lines that say why a run failed: an exception with its message, preceded by a decisive message if there is one.

    Args:
        lines: Log lines, cleaned.
        most: Longest message to return, in lines; it is cut at its end.

    Returns:
        Empty when the log holds no exception.
    """
    decisive = next((text for line in reversed(lines) for sign, text in _DECISIVE if sign.search(line)), None)
    best: tuple[int, int] | None = None
    for index, line in enumerate(lines):
        match = _EXCEPTION.match(line)
        if match is None:
            continue
        rank = 0 if match[1] in _ENDINGS else 1 if line.partition(":")[0].split(".")[-1].startswith(_WRAPPERS) else 2
        if best is None or rank >= best[0]:
            best = rank, index
    message: list[str] = []
    if best is not None:
        for line in lines[best[1] : best[1] + most]:
            # The message of an exception goes on until a blank line, another traceback or a log line.
            if message and (not line or line.startswith(("Traceback", "During handling", "The above exception"))):
                break
            message.append(line[:400])
    return ([decisive] if decisive else []) + message
