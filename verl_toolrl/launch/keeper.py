"""The keeper: stands between launcher and trainer, and leaves no process of the run behind.

Run as `python -m verl_toolrl.launch.keeper RUN_FOLDER -- TRAINER ARGUMENT ...`. Standard input is the line to the
launcher: the name of a signal ends the run politely, `kill` at once, and end of file means that the launcher is gone,
which ends the run too. The keeper leads a session of its own, so that a Ctrl-C of the terminal reaches the launcher
only, and adopts every orphan below it.

It ends the run as well when a process without which verl would wait for ever dies and the trainer has not noticed
within `VITAL_PATIENCE` seconds. The outcome goes into `run.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from verl_toolrl.launch.metrics import newest_step, total_steps
from verl_toolrl.launch.processes import (
    Process,
    adopt_orphans,
    die_with_parent,
    end_processes,
    members,
    read_process,
)
from verl_toolrl.launch.residue import SharedMemory, remove_scratch, scratch_folder
from verl_toolrl.launch.runs import Run, identity, load_run

__all__ = ["QUEUE", "VITAL", "VITAL_PATIENCE", "Keeper", "describe_exit", "finish_run", "main"]

VITAL = (
    "VLLM::",
    "sglang::",
    "ray::vLLMHttpServer",
    "ray::SGLangHttpServer",
    "ray::WorkerDict",
    "ray::TaskRunner",
    "ray::AgentLoopWorker",
    "ray::RewardLoopWorker",
    "ray::TransferQueueController",
    "ray::SimpleStorageUnit",
)
"""Titles of processes that live as long as the run: names of vLLM and SGLang, and actors of verl and TransferQueue."""

QUEUE = ("ray::TransferQueueController", "ray::SimpleStorageUnit")
"""Those of them that verl closes while its task runner still runs: the last thing that `TaskRunnerV1.run` does."""

VITAL_PROGRAMS = ("raylet", "gcs_server")
"""The same, by the name of the program."""

VITAL_PATIENCE = 4.0
"""Seconds that verl gets to end by itself, with its own error, after a vital process died."""

CLOSING_PATIENCE = 60.0
"""The same after training, while verl closes its engines."""


def is_vital(title: str) -> bool:
    """Whether a run cannot go on without the process of this title."""
    return title.startswith(VITAL) or os.path.basename(title.partition(" ")[0]) in VITAL_PROGRAMS


def vital_processes(processes: list[Process]) -> dict[int, str]:
    """The vital ones of a run's processes: title by id.

    A process that forks, to start a program or a data loader's worker, has children that bear its title for a while;
    they may come and go.
    """
    titles = {process.pid: process.title for process in processes}

    def role(pid: int) -> str:
        name = titles.get(pid, "").partition(" ")[0]
        # Ray adds the method: ray::WorkerDict.update_actor. A program is known by its name, wherever it is installed.
        return name.partition(".")[0] if name.startswith(VITAL) else os.path.basename(name)

    return {p.pid: titles[p.pid] for p in processes if is_vital(titles[p.pid]) and role(p.ppid) != role(p.pid)}


class Keeper:
    """Starts the trainer of a run and ends the whole tree in each way a run can end.

    Args:
        run: The run; its newest attempt is filled in.
        argv: Command line of the trainer.
        patience: Seconds that the trainer gets to end by itself when the run is ended.
    """

    def __init__(self, run: Run, argv: list[str], *, patience: float) -> None:
        self.run = run
        self.argv = argv
        self.patience = patience
        self.exit_code: int | None = None
        self.reason = ""
        """Why the run has to be ended; empty while it may go on."""

        self._memory = SharedMemory(from_the_start=True)
        self._trainer: Process | None = None
        self._vital: dict[int, str] = {}
        self._descriptors: dict[int, int] = {}
        """pidfd of each vital process, which becomes readable when it ends."""

        self._vital_died: tuple[float, str] | None = None
        self._died_in_training = False
        self._task_begun = self._task_ended = False
        self._stop_signal = 0
        self._force = False

    def start(self) -> None:
        """Start the trainer, its output going to the log."""
        adopt_orphans()
        # Handlers, not SIG_IGN: what is ignored here would stay ignored in the trainer.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(signum, self._on_signal)
        with open(self.run.file("train.log"), "ab") as log:
            child = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
            )
        self._trainer = read_process(child.pid)
        attempt = self.run.attempt
        attempt.state = "running"
        attempt.keeper = identity(os.getpid()) | {"pgid": os.getpgid(0)}
        attempt.trainer = identity(child.pid)
        self.run.save()

    def watch(self) -> None:
        """Wait until the trainer ends (`exit_code`) or the run has to be ended (`reason`)."""
        scan_at = 0.0
        while not self.reason:
            self._collect_ended()
            if self.exit_code is not None:
                return
            if time.monotonic() >= scan_at:
                begin = time.monotonic()
                self._scan()
                # A look takes time on a machine with thousands of processes, or with none to spare.
                scan_at = begin + min(max(1.0, 50 * (time.monotonic() - begin)), 3.0)
            if self._listen(0.2):
                scan_at = 0.0

    def end(self) -> None:
        """End what is left of the run, remove its residue and write the outcome."""
        self._memory.look(self._members())
        trainer = self._trainer if self.exit_code is None else None
        if trainer is None:
            self._wait_for_leavers(2.0)
        ended, survivors = end_processes(self._members, first=trainer, patience=self.patience, hurry=self._hurry)
        self._collect_ended()
        if trainer is not None:
            ended.pop(trainer.pid, None)
        self._memory.remove()
        finish_run(
            self.run,
            reason=self.reason,
            exit_code=self.exit_code,
            # A trainer that fails takes engine and workers along: their death is the cause only if it came first.
            died=self._vital_died[1] if self._vital_died and (self.reason or self._died_in_training) else "",
            ended=list(ended.values()),
            survivors=survivors,
        )

    def _members(self) -> list[Process]:
        return members(self.run.id, roots=[os.getpid()])

    def _on_signal(self, signum: int, _frame: object) -> None:
        self._stop_signal = signum

    def _hurry(self) -> bool:
        self._collect_ended()
        self._listen(0.0)
        return self._force

    def _wait_for_leavers(self, seconds: float) -> None:
        """What the trainer leaves at its own end gets a moment to leave too: Ray closes its cluster just then."""
        deadline = time.monotonic() + seconds
        while self._members() and time.monotonic() < deadline:
            self._collect_ended()
            time.sleep(0.1)

    def _collect_ended(self) -> None:
        """Collect ended children and adopted orphans; keeps the trainer's exit code."""
        with contextlib.suppress(ChildProcessError):
            while (child := os.waitpid(-1, os.WNOHANG))[0]:
                if self._trainer is not None and child[0] == self._trainer.pid:
                    self.exit_code = os.waitstatus_to_exitcode(child[1])

    def _scan(self) -> None:
        """Look at the run's processes: shared memory in use, and vital ones that died."""
        alive = self._members()
        if self._memory.look(alive):
            self.run.attempt.segments = sorted(self._memory.used)
            with contextlib.suppress(OSError):  # a full disk must not end a run that verl can still save
                self.run.save()
        self._watch_vital(vital_processes(alive), {process.pid for process in alive})
        for pid in self._descriptors.keys() - self._vital.keys():
            os.close(self._descriptors.pop(pid))
        for pid in self._vital.keys() - self._descriptors.keys():
            with contextlib.suppress(OSError):
                self._descriptors[pid] = os.pidfd_open(pid)

    def _watch_vital(self, vital: dict[int, str], alive: set[int]) -> None:
        """Find out whether one died that verl would wait for, and give verl time to notice.

        At the end of training verl closes its actors and engines itself, and must not be taken for a failure. That is
        under way once the last step is in the metrics, or the task runner's `run` has returned, which Ray shows in its
        title. The death of the task runner itself reaches the trainer through Ray.
        """
        runners = [title for title in vital.values() if title.startswith("ray::TaskRunner")]
        running = any(".run" in title for title in runners)
        for pid, title in self._vital.items():
            if pid not in alive and self._vital_died is None and (running or not title.startswith("ray::")):
                self._vital_died = time.monotonic(), f"{title.partition(' ')[0]} (process {pid})"
                self._died_in_training = running
        returned = not running and (bool(runners) or self._vital_died is None)
        self._task_ended = self._task_ended or (self._task_begun and returned)
        self._task_begun = self._task_begun or running
        self._vital = vital
        if self._vital_died is not None and time.monotonic() - self._vital_died[0] > self._patience_with_verl():
            self.reason = "died"

    def _patience_with_verl(self) -> float:
        if self._task_ended or (self._vital_died is not None and self._vital_died[1].startswith(QUEUE)):
            return CLOSING_PATIENCE
        last = total_steps(self.run.file("train.log"))
        newest = newest_step(self.run.file("metrics.jsonl"))
        done = last is not None and newest is not None and newest >= last
        return CLOSING_PATIENCE if done else VITAL_PATIENCE

    def _listen(self, seconds: float) -> bool:
        """Wait for a word of the launcher, for a signal (the first reason stands) or for the end of a vital process.

        Returns:
            Whether a vital process ended: to be looked at now, before the processes that depend on it follow.
        """
        reason = ""
        ready = select.select([0, *self._descriptors.values()], [], [], seconds)[0]
        if 0 in ready:
            words = os.read(0, 4096).decode(errors="replace").split()
            if not words:  # end of file; it would stay readable for ever, so something silent takes its place
                os.dup2(os.pipe()[0], 0)
            self._force = self._force or "kill" in words
            reason = words[0] if words else "launcher-gone"
        elif self._stop_signal:
            reason = signal.Signals(self._stop_signal).name
        self.reason = self.reason or reason
        return bool(set(ready) - {0})


def finish_run(
    run: Run, *, reason: str, exit_code: int | None, died: str, ended: list[str], survivors: list[Process]
) -> None:
    """Write how the newest attempt ended, and remove its scratch folder (Ray's logs are kept after a failure)."""
    attempt = run.attempt
    if exit_code == 0:
        attempt.state, attempt.reason = "finished", ""
    elif reason == "died":
        attempt.state, attempt.reason = "failed", f"{died} died"
    elif reason:
        attempt.state, attempt.reason = "interrupted", reason
    else:
        attempt.state, attempt.reason = "failed", describe_exit(exit_code) + (f", after {died} died" if died else "")
    attempt.exit_code = exit_code
    attempt.died = died if attempt.state == "failed" else ""
    attempt.ended_processes = ended
    attempt.survivors = [f"{process.title} (process {process.pid})" for process in survivors]
    attempt.stopped = time.strftime("%Y-%m-%dT%H:%M:%S")
    keep_logs = run.folder / f"ray-logs.{attempt.number}" if attempt.state == "failed" else None
    remove_scratch(scratch_folder(run.id), keep_logs_in=keep_logs)
    with contextlib.suppress(OSError):  # a full disk; the processes are gone all the same
        run.save()


def describe_exit(exit_code: int | None) -> str:
    """`exit code 1`, or the name of the signal that ended the trainer."""
    if exit_code is None:
        return "ended unseen"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"killed by signal {-exit_code}"


def main() -> None:
    """Keep one run, from its start to its last process."""
    parser = argparse.ArgumentParser(prog="keeper", description="Internal: keeps a run of verl-toolrl train.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patience", type=float, default=4.0)
    parser.add_argument("argv", nargs="+")
    given = parser.parse_args()
    run = load_run(given.folder)
    if run is None:
        parser.error(f"no run in {given.folder}")
    keeper = Keeper(run, given.argv, patience=given.patience)
    try:
        keeper.start()
        keeper.watch()
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
