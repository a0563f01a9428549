"""What a killed run leaves besides processes: shared memory segments, and the scratch folder with Ray's session.

A segment in /dev/shm has no owner that could be asked, so the run's processes are watched for the segments they map.
Removed is only what a process of the run had mapped and no process maps any more, and segments of verl's weight
transfer (`verl_weights_*`) that appeared during the run and are mapped by nobody: the sender can die in the second
between two looks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from verl_toolrl.launch.processes import Process, process_table

__all__ = ["SharedMemory", "mapped_segments", "remove_scratch", "scratch_folder"]

SHM = Path("/dev/shm")
_VERL_WEIGHTS = "verl_weights_"  # verl/workers/rollout/vllm_rollout/bucketed_weight_transfer.py


class SharedMemory:
    """Remembers which segments of /dev/shm a run uses, and removes those that it leaves.

    Args:
        used: Segments that are known to be the run's.
        from_the_start: Whether the run begins now. Otherwise only segments that its processes are seen to use count.
    """

    def __init__(self, used: Iterable[str] = (), *, from_the_start: bool) -> None:
        self.used = set(used)
        """Segments that a process of the run has had mapped or open."""

        self._before = _segments() if from_the_start else set()
        self._from_the_start = from_the_start

    def look(self, processes: Iterable[Process]) -> bool:
        """Note the segments that these processes use now; returns whether there are new ones.

        Free of cost while no new segment exists.
        """
        new = _segments() - self._before - self.used
        count = len(self.used)
        if new:
            for process in processes:
                self.used |= mapped_segments(process.pid) & new
        return len(self.used) > count

    def remove(self) -> list[str]:
        """Remove the run's segments once its processes are gone; returns their names."""
        there = _segments()
        left = self.used & there
        if self._from_the_start:
            left |= {name for name in there - self._before if name.startswith(_VERL_WEIGHTS)}
        if left:
            for pid in process_table():
                left -= mapped_segments(pid)
        return sorted(name for name in left if _remove_own(SHM / name))


def _segments() -> set[str]:
    try:
        return set(os.listdir(SHM))
    except OSError:
        return set()


def _remove_own(path: Path) -> bool:
    try:
        if path.stat().st_uid != os.getuid() or path.is_dir():
            return False
        path.unlink()
        return True
    except OSError:
        return False


def mapped_segments(pid: int) -> set[str]:
    """Names in /dev/shm that a process has mapped or open."""
    prefix = f"{SHM}/"
    names: set[str] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:
        names.update(line.rstrip("\n").partition(prefix)[2] for line in maps if prefix in line)
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith(prefix):
                    names.add(target[len(prefix) :])
    return {name.partition("/")[0] for name in names if name and not name.endswith(" (deleted)")}


def scratch_folder(run_id: str) -> Path:
    """Where the run's Ray session and sockets lie: a short path, as a Unix socket's path has at most 107 characters."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > 24 and os.access("/tmp", os.W_OK):
        base = Path("/tmp")
    return base / f"vtr-{run_id}"


def remove_scratch(folder: Path, *, keep_logs_in: Path | None = None) -> bool:
    """Remove a scratch folder; returns whether there was one.

    Args:
        folder: A folder named by `scratch_folder`.
        keep_logs_in: Folder that receives a copy of the newest Ray session's logs first (after a failure).
    """
    if not folder.is_dir():
        return False
    sessions = sorted(folder.glob("ray/session_2*/logs"))
    if keep_logs_in is not None and sessions and not keep_logs_in.exists():
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(
                sessions[-1], keep_logs_in, ignore=shutil.ignore_patterns("*.sock", "events", "export_events")
            )
    shutil.rmtree(folder, ignore_errors=True)
    return True
