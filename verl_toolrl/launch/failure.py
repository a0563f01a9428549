"""What went wrong in a run: the lines of its log that say so.

A failed verl run ends in several nested tracebacks, often with a page of shutdown noise behind them. What the trainer
wrote itself outweighs what Ray's workers wrote (their lines carry a prefix, `(TaskRunnerV1 pid=123)`, and may tell of
errors that verl survived); the exception at the bottom outweighs Ray's and Hydra's wrappers around it; and some
messages outweigh any exception.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["clean_line", "last_error", "tail_of"]

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(r"^\(([\w:.]+)(?: pid=\d+[^)]*)\) ?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*)(?:\(\w+\))?(?::|$)")
_WRAPPERS = ("RayTaskError", "InstantiationException")
_DECISIVE = (
    (
        re.compile(
            r"node running low on memory|OutOfMemoryError|workers? \(tasks? / actors?\) killed due to memory", re.I
        ),
        "the machine ran out of memory and Ray ended a worker",
    ),
    (re.compile(r"No space left on device", re.I), "no space is left on the disk"),
)
_TAIL_BYTES = 400_000


def clean_line(line: str) -> str:
    """Strip colours and Ray's `(TaskRunnerV1 pid=123)` in front of a line."""
    return _PREFIX.sub("", _ANSI.sub("", line)).rstrip()


def tail_of(log: Path, size: int = _TAIL_BYTES) -> list[str]:
    """The last lines of a log without colours; empty when there is no log."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [_ANSI.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text)]


def last_error(log: Path, *, most: int = 6) -> list[str]:
    """The lines that say why a run failed.

    Args:
        log: Log of the trainer.
        most: Longest exception message to return, in lines.

    Returns:
        A decisive message if there is one, then the exception and its message; empty where the log holds neither.
    """
    lines = tail_of(log)
    own = [line for line in lines if not _PREFIX.match(line)]
    decisive = next((text for line in reversed(lines) for sign, text in _DECISIVE if sign.search(line)), None)
    message = _last_exception(own, most) or _last_exception([clean_line(line) for line in lines], most)
    return ([decisive] if decisive else []) + message


def _last_exception(lines: list[str], most: int) -> list[str]:
    """The exception of the last traceback, with its message; one that only wraps another counts where no other is."""
    best: tuple[int, int] | None = None
    in_traceback = False
    for index, line in enumerate(lines):
        if line.startswith('  File "'):
            in_traceback = True
        elif in_traceback and line and not line.startswith("  "):
            in_traceback = False
            match = _EXCEPTION.match(line)
            if match is not None:
                rank = 0 if match[1] in _WRAPPERS else 1
                best = max(best, (rank, index)) if best else (rank, index)
    if best is None:
        return []
    message = [lines[best[1]][:400]]
    if ":" not in message[0]:
        return message
    for line in lines[best[1] + 1 : best[1] + most]:
        # A message goes on until a blank line or the next thing that is logged.
        if not line or re.match(
            r"Traceback|During handling|The above exception|Set the environment|[A-Z]+:\d|\(|\[|\d{4}-", line
        ):
            break
        message.append(line[:400])
    return message
