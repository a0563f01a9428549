"""Recording and replaying the answers of tools.

A recording is a JSON-lines file, one answer a line, that can be read, edited and committed. An answer is found again by
what determines it: the tool's name and its arguments, and for a tool with state also the initial state and every
earlier call on it in the trajectory.

Modes: `record` runs everything and writes it down; `replay` runs nothing, and a call that was never recorded is an
infrastructure failure, never a wrong answer; `cache` answers stateless calls from the file and records what is new.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import IO, Any

import orjson

from verl_toolrl.errors import ConfigError
from verl_toolrl.trajectory import Outcome, ToolResult

__all__ = ["Recording", "RecordingMode"]

logger = logging.getLogger(__name__)

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


class RecordingMode(str, Enum):
    """What a recording does; see the module."""

    RECORD = "record"
    REPLAY = "replay"
    CACHE = "cache"


class Recording:
    """Answers of tools in a file.

    Args:
        path: The JSON-lines file; created in modes `record` (which empties it) and `cache`.
        mode: See `RecordingMode`.

    Raises:
        ConfigError: If the mode is unknown, or the file to replay is missing or broken.
    """

    def __init__(self, path: str | Path, mode: str | RecordingMode) -> None:
        self.path = Path(path)
        try:
            self.mode = RecordingMode(mode)
        except ValueError as err:
            raise ConfigError(f"recording: mode must be record, replay or cache, found {mode!r}") from err
        self._answers: dict[str, ToolResult] = {}
        self._file: IO[bytes] | None = None
        self._opened = False
        if self.mode is not RecordingMode.RECORD:
            self._load()

    def _load(self) -> None:
        if not self.path.exists():
            if self.mode is RecordingMode.REPLAY:
                raise ConfigError(f"recording {self.path}: no such file; make it with mode 'record'")
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = orjson.loads(line)
                    self._answers[row["key"]] = ToolResult(
                        **{**row["result"], "outcome": Outcome(row["result"]["outcome"])}
                    )
                except (ValueError, KeyError, TypeError) as err:
                    raise ConfigError(f"recording {self.path}, line {number}: {type(err).__name__}: {err}") from err

    def key(self, name: str, arguments: Mapping[str, Any], history: str = "") -> str:
        """Return what determines an answer, as a short digest; `history` is the digest of a state and its calls."""
        try:
            raw = orjson.dumps([name, arguments, history], option=_OPTIONS, default=str)
        except (TypeError, ValueError):
            raw = repr((name, arguments, history)).encode(errors="replace")
        return hashlib.sha256(raw).hexdigest()[:32]

    def find(self, key: str, stateful: bool) -> ToolResult | None:
        """Return the recorded answer if this mode may use it."""
        if self.mode is RecordingMode.RECORD or (stateful and self.mode is RecordingMode.CACHE):
            return None
        return self._answers.get(key)

    def add(self, key: str, name: str, arguments: Mapping[str, Any], result: ToolResult, stateful: bool) -> None:
        """Write an answer down. A failure of infrastructure is no answer and is left out."""
        if self.mode is RecordingMode.REPLAY or result.outcome.is_infrastructure or key in self._answers:
            return
        if stateful and self.mode is RecordingMode.CACHE:
            return
        row = {"key": key, "tool": name, "arguments": dict(arguments), "result": {**asdict(result), "seconds": 0.0}}
        try:
            line = orjson.dumps(row, option=orjson.OPT_NON_STR_KEYS, default=str) + b"\n"
        except (TypeError, ValueError) as err:
            logger.warning(f"recording {self.path}: an answer of {name!r} has no JSON form and is left out: {err}")
            return
        self._answers[key] = result
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.mode is RecordingMode.RECORD and not self._opened
            self._file = self.path.open("wb" if fresh else "ab")
            self._opened = True
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later answer opens it again to append."""
        if self._file is not None:
            self._file.close()
            self._file = None
