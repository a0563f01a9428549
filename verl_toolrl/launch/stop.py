"""Ends a run from outside: asks its keeper, then ends what carries the run's mark.

Needs nothing but the process table, so it also works when the run folder is gone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.launch.keeper import finish_run
from verl_toolrl.launch.preflight import describe_runs
from verl_toolrl.launch.processes import Process, end_processes, mark_of, marked_runs, members, send_signal
from verl_toolrl.launch.residue import SharedMemory, remove_scratch, scratch_folder
from verl_toolrl.launch.runs import UNFINISHED, Run, load_run, refuse_elsewhere

__all__ = ["Outcome", "find_runs", "stop_run", "sweep"]

_KEEPER_SECONDS = 12.0
_RESUME = "`verl-toolrl train ... --resume --force` goes on with it"


@dataclass(frozen=True)
class Outcome:
    """What was ended of one run."""

    run_id: str
    folder: str
    ended: dict[int, str]
    """Titles of the processes, by id."""

    segments: list[str]
    """Names of shared memory segments that were removed."""

    survivors: list[str]

    def text(self) -> str:
        """The outcome for a person."""
        lines = [f"run {self.run_id} ({self.folder or 'folder unknown'}): ended {len(self.ended)} processes"]
        lines += [f"  {title[:100]}" for title in self.ended.values()]
        lines += [f"  removed shared memory {name}" for name in self.segments]
        lines += [f"  could not be ended: {title}" for title in self.survivors]
        return "\n".join(lines)


def find_runs(text: str | None, *, everything: bool) -> list[str]:
    """Ids of the runs that are meant and have living processes.

    Args:
        text: Run folder or run id; None where only one run can be meant.
        everything: All runs.

    Raises:
        ConfigError: No such run, several and none was named, or the folder of one that may run on another host.
    """
    going = marked_runs()
    if everything:
        return list(going)
    if text is None:
        if len(going) > 1:
            raise ConfigError(
                f"several runs are going: {describe_runs(going)}; name one by its id or folder, or give --all"
            )
        return list(going)
    if text in going:
        return [text]
    if Path(text).is_dir():
        run = load_run(Path(text))
        if run is None:
            raise ConfigError(f"{text} is not the folder of a run (no run.json)")
        refuse_elsewhere(run, remedy=_RESUME)
        return [run.id] if run.id in going or run.attempt.state in UNFINISHED else []
    raise UnknownNameError("run", text, going)


def stop_run(run_id: str, folder: str = "", *, force: bool = False) -> Outcome:
    """End one run and remove what it leaves.

    Args:
        run_id: The run.
        folder: Its folder, where that is known; otherwise its processes say it.
        force: Also write the end of an attempt that was started on another host.

    Raises:
        ConfigError: Its newest attempt was started on another host, where it may still run.
    """
    alive = members(run_id)
    marks = [mark_of(process.pid) for process in alive]
    folder = folder or next((mark["VERL_TOOLRL_RUN_DIR"] for mark in marks if "VERL_TOOLRL_RUN_DIR" in mark), "")
    titles = {process.pid: process.title for process in alive}
    run = load_run(Path(folder)) if folder else None
    if run is not None:
        if not force:
            refuse_elsewhere(run, remedy=_RESUME)
        _ask_keeper(run, alive)
        run = load_run(run.folder) or run
    outcome = sweep(run_id, lambda: members(run_id), run=run, reason="stopped")
    return replace(outcome, folder=folder, ended={**titles, **outcome.ended})


def _ask_keeper(run: Run, alive: list[Process]) -> None:
    """Let the keeper end its run, if it is there."""
    wanted = run.attempt.keeper
    keeper = next((p for p in alive if (p.pid, p.start) == (wanted.get("pid"), wanted.get("start"))), None)
    if keeper is not None and send_signal(keeper, signal.SIGTERM):
        deadline = time.monotonic() + _KEEPER_SECONDS
        while members(run.id) and time.monotonic() < deadline:
            time.sleep(0.1)


def sweep(
    run_id: str, find: Callable[[], list[Process]], *, run: Run | None, reason: str = "", died: str = ""
) -> Outcome:
    """End the processes of a run whose keeper is gone, remove its residue, and write the outcome if nobody has.

    Args:
        run_id: The run.
        find: Returns its living processes.
        run: Its folder and marker, where they are still there.
        reason: Why it is ended, as `finish_run` takes it.
        died: What died, likewise.
    """
    memory = SharedMemory(run.attempt.segments if run is not None else (), from_the_start=False)
    memory.look(find())
    ended, survivors = end_processes(find, patience=2.0)
    segments = memory.remove()
    if run is not None and run.attempt.state in UNFINISHED:
        finish_run(run, reason=reason, exit_code=None, died=died, ended=list(ended.values()), survivors=survivors)
    remove_scratch(scratch_folder(run_id))
    return Outcome(run_id, "", ended, segments, [f"{process.title} (process {process.pid})" for process in survivors])
