"""Trajectories as JSON lines, a file a training step, rotated and bounded.

    trajectories/step_000012.jsonl, one trajectory a line:
    {"version": 2, "step": 12, "group": "3f2a...", "session": 0, "reward": 1.5, "components": {"is_solved": 1.0, ...},
     "step_rewards": [0.5, 1.0], "tokens": {"prompt": 212, "response": 96, "trained": 51},
     "trajectory": {"version": 1, "messages": [...], "steps": [{"text": ..., "span": [0, 39], "calls": [...],
                    "results": [{"outcome": "ok", "content": ...}], ...}], "stop_reason": "finished", ...,
                    "appended": [[{"role": "tool", "content": ...}], ...]}}

`appended` holds the messages that followed each step but the last, as the model read them; version 1 lacks it. Whole
groups are written, so that samples of one prompt can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.rollout.wire import dumps, loads

__all__ = ["JOURNAL_VERSION", "Journal", "read_journal"]

JOURNAL_VERSION = 2
"""Version of a line; older ones are read too."""

_NAME = re.compile(r"step_(\d+)\.jsonl")


class Journal:
    """Writes the trajectories of a run.

    Args:
        folder: Where; made when first written to.
        steps: Files that are kept, the newest; 0 writes nothing.
        trajectories: Trajectories of a step that are written, rounded down to whole groups, but at least one group.
        megabytes: Size of all files together; older ones go first. A step that is larger alone is cut.
    """

    def __init__(self, folder: Path, *, steps: int = 50, trajectories: int = 64, megabytes: int = 256) -> None:
        for name, value, least in (("steps", steps, 0), ("trajectories", trajectories, 1), ("megabytes", megabytes, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"journal: {name} must be a whole number >= {least}, found {value!r}")
        self.folder, self._steps, self._trajectories, self._bytes = folder, steps, trajectories, megabytes << 20
        self._begun = False

    def write(self, step: int, records: Sequence[Mapping[str, Any]]) -> Path | None:
        """Write one step and rotate.

        The first one removes the files of later steps: a run that goes on from an earlier step has given them up, and
        as the newest they would push out what is written now.

        Args:
            step: Number of the step; a second call for it replaces its file.
            records: Lines without `version` and `step`, members of a group next to each other or not.

        Returns:
            The file, or None if nothing was to be written.
        """
        if not self._steps or not records:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06d}.jsonl"
        size, lines = 0, []
        for record in self._chosen(records):
            line = dumps({"version": JOURNAL_VERSION, "step": step, **record}).encode() + b"\n"
            size += len(line)
            if size > self._bytes:
                break
            lines.append(line)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(b"".join(lines))
        unfinished.replace(path)
        if not self._begun:
            self._begun = True
            for later in self._files():
                if _step_of(later) > step:
                    later.unlink()
        self._rotate()
        return path

    def _chosen(self, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for record in records:
            groups.setdefault(record.get("group"), []).append(record)
        chosen: list[Mapping[str, Any]] = []
        for members in groups.values():
            if chosen and len(chosen) + len(members) > self._trajectories:
                break
            chosen += members
        return chosen

    def _files(self) -> list[Path]:
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_step_of)

    def _rotate(self) -> None:
        files = self._files()
        total = sum(path.stat().st_size for path in files)
        while files and (len(files) > self._steps or total > self._bytes):
            oldest = files.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of one file, or of all files of a folder in the order of their steps.

    Raises:
        DatasetError: If a line cannot be read, or its version is not ours.
    """
    files = sorted(each for each in path.iterdir() if _NAME.fullmatch(each.name)) if path.is_dir() else [path]
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                record = loads(line)
            except ValueError as err:
                raise DatasetError(f"{file}:{number}: not JSON ({err})") from err
            version = record.get("version") if isinstance(record, dict) else None
            if version not in range(1, JOURNAL_VERSION + 1):
                raise DatasetError(f"{file}:{number}: version {version!r}, this package reads 1 to {JOURNAL_VERSION}")
            yield record
