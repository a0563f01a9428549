"""The processes of a run: finding them in /proc and ending them (Linux).

A process belongs to a run when it carries the run's mark in its environment, or descends from one that does. The mark
is inherited by every child, also by those that leave the session or fork twice; descent finds those that threw their
environment away. Nothing else is ever signalled: each signal goes through a pidfd that is compared with the process
that was found, so that a recycled process id cannot be hit.

Programs that rename themselves (`ray::IDLE`, `VLLM::EngineCore`) overwrite the memory that /proc shows as their
environment, unless `SPT_NOENV` is set for the `setproctitle` package; Ray's own renaming keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MARK",
    "Process",
    "adopt_orphans",
    "descendants",
    "die_with_parent",
    "end_processes",
    "mark_of",
    "marked_runs",
    "members",
    "process_table",
    "read_process",
    "send_signal",
]

MARK = "VERL_TOOLRL_RUN_ID"
"""Environment variable that every process of a run inherits; its value is the run id."""

_TITLE_LENGTH = 120  # Ray's raylet has a command line of 5,000 characters
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    ppid: int
    state: str
    """Letter of /proc/<pid>/stat: R, S, D, T, Z (ended, not yet collected by its parent), ..."""

    start: int
    """Clock ticks after boot at which it started; with `pid`, this names a process for good."""

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.state not in "ZXx"

    @property
    def title(self) -> str:
        """Command line as `ps` shows it, without arguments where the program set a title of its own."""
        raw = _read(f"/proc/{self.pid}/cmdline")
        words = raw.replace(b"\0", b" ").decode(errors="replace").strip()[:_TITLE_LENGTH]
        return words or f"[{_read(f'/proc/{self.pid}/comm').decode(errors='replace').strip() or 'ended'}]"

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds in RAM, shared pages included."""
        fields = _read(f"/proc/{self.pid}/statm").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # ended meanwhile, or another user's
        return b""


def read_process(pid: int) -> Process | None:
    """Look up one process; None when there is none of this id."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    # The command name stands in parentheses and may itself hold blanks and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(pid=pid, ppid=int(fields[1]), state=fields[0].decode(), start=int(fields[19]))


def process_table() -> dict[int, Process]:
    """All processes of the machine (of the container), by id."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def mark_of(pid: int) -> dict[str, str]:
    """The variables of this package in the environment of a process; empty when it is not ours to read."""
    prefix = b"VERL_TOOLRL_RUN"
    pairs = (entry.partition(b"=") for entry in _read(f"/proc/{pid}/environ").split(b"\0") if entry.startswith(prefix))
    return {key.decode(): os.fsdecode(value) for key, _, value in pairs}


def descendants(roots: Iterable[int], table: dict[int, Process]) -> set[int]:
    """Ids of all children, grandchildren, ... of `roots`, without the roots."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.ppid, []).append(process.pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _lineage(pid: int, table: dict[int, Process]) -> set[int]:
    """`pid` and its ancestors: what a command must never end, even when it was started from within a run."""
    line: set[int] = set()
    while pid in table and pid not in line:
        line.add(pid)
        pid = table[pid].ppid
    return line


def members(run_id: str, *, roots: Iterable[int] = (), table: dict[int, Process] | None = None) -> list[Process]:
    """Living processes of a run: the marked ones and what descends from them or from `roots`.

    Args:
        run_id: Value of the mark.
        roots: Ids whose descendants belong to the run as well (the keeper names itself).
        table: Process table to read; a fresh one when None.

    Returns:
        Processes by id, never the calling process or one of its ancestors.
    """
    table = process_table() if table is None else table
    marked = {pid for pid in table if mark_of(pid).get(MARK) == run_id}
    found = marked | descendants([*marked, *roots], table)
    found -= _lineage(os.getpid(), table)
    return [table[pid] for pid in sorted(found) if table[pid].alive]


def marked_runs() -> dict[str, list[Process]]:
    """Living processes of all marked runs of this user (of everybody, for root), by run id."""
    table = process_table()
    run_ids = {mark_of(pid).get(MARK, "") for pid, process in table.items() if process.alive} - {""}
    runs = {run_id: members(run_id, table=table) for run_id in sorted(run_ids)}
    return {run_id: processes for run_id, processes in runs.items() if processes}


def send_signal(process: Process, signum: int) -> bool:
    """Signal exactly this process; False when it has ended (or is another user's).

    The pidfd is opened first and the start time compared afterwards, so the signal cannot reach a later process of the
    same id.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.start != process.start or not now.alive:
            return False
        signal.pidfd_send_signal(descriptor, signum)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def end_processes(
    find: Callable[[], list[Process]],
    *,
    first: Process | None = None,
    patience: float = 4.0,
    hurry: Callable[[], bool] = lambda: False,
) -> tuple[dict[int, str], list[Process]]:
    """End all processes that `find` returns: politely, then with force.

    Order: SIGTERM to `first` (the trainer, whose exit lets Ray close its own cluster), after `patience` SIGTERM to the
    rest, after half of that SIGKILL to whatever is there, again and again while new ones appear.

    Args:
        find: Returns what is still alive; called anew at each turn.
        first: Process that gets the chance to end the others itself.
        patience: Seconds for the polite part; 0 goes straight to SIGKILL.
        hurry: Called at each turn; once it says True the polite part is over.

    Returns:
        (titles by process id of all that had to be ended, processes that outlived SIGKILL for five seconds).
    """
    ended: dict[int, str] = {}
    terminated: set[int] = set()
    begin = time.monotonic()
    while True:
        if hurry():
            patience = 0.0
        alive = find()
        if not alive:
            return ended, []
        waited = time.monotonic() - begin
        if waited > 1.5 * patience + 5.0:
            return ended, alive
        for process in alive:
            if process.pid not in ended:
                ended[process.pid] = process.title
        if waited >= 1.5 * patience:
            targets, signum = alive, signal.SIGKILL
        else:
            polite = alive if first is None or waited >= patience else [p for p in alive if p.pid == first.pid]
            # A `first` that is gone while others remain: nobody is left to close them in order.
            polite = polite or alive
            targets, signum = [p for p in polite if p.pid not in terminated], signal.SIGTERM
            terminated.update(p.pid for p in targets)
        for process in targets:
            send_signal(process, signum)
        time.sleep(0.1)


def adopt_orphans() -> None:
    """Make this process the new parent of descendants whose parent dies (prctl PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Let the kernel send `signum` to the calling process when its parent dies (prctl PR_SET_PDEATHSIG)."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
