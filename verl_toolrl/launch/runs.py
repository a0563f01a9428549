"""The folder of a run and its marker `run.json`: who runs there, how it ended, how to go on.

    outputs/toolrl/quickstart/20260822-141500/
      run.json         run id, recipe, attempts with their process ids, commands and outcomes
      config.yaml      the composed configuration        (config.2.yaml after a --resume, and so on)
      train.log        what verl, Ray and vLLM wrote     (train.2.log, ...)
      metrics.jsonl    one object a step                 (metrics.2.jsonl, ...)
      checkpoints/     trainer.default_local_dir

verl's file logger truncates the file that it opens, so every attempt writes files of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.processes import read_process

__all__ = [
    "MARKER",
    "UNFINISHED",
    "Attempt",
    "Run",
    "claim",
    "default_output",
    "identity",
    "last_checkpoint",
    "load_run",
    "new_run",
    "refuse_elsewhere",
    "resumed_run",
]

MARKER = "run.json"
UNFINISHED = ("starting", "running")
"""States that an attempt keeps only while it runs, or when everything that could have changed them was killed."""


@dataclass
class Attempt:
    """One start of the trainer in a run folder; `--resume` adds another."""

    number: int
    overrides: list[str]
    command: str = ""
    """The shell line that was run."""

    started: str = ""
    """Local time, ISO 8601."""

    launcher: dict[str, int] = field(default_factory=dict)
    """`pid` and `start` (clock ticks after boot) of the process the user started."""

    keeper: dict[str, int] = field(default_factory=dict)
    """The same of the keeper, which leads the session and process group (`pgid`) of the run."""

    trainer: dict[str, int] = field(default_factory=dict)
    """The same of `python -m verl.trainer.main_ppo`."""

    state: str = "starting"
    """starting, running, finished, failed or interrupted."""

    reason: str = ""
    """Why it ended, where it did not finish: `SIGINT`, `exit code 1`, `VLLM::EngineCore died`, ..."""

    exit_code: int | None = None
    """Exit code of the trainer; negative when a signal ended it."""

    died: str = ""
    """The vital process whose death made the run fail, if it was that."""

    segments: list[str] = field(default_factory=list)
    """Segments of shared memory that processes of the run were seen to use."""

    ended_processes: list[str] = field(default_factory=list)
    """Titles of the processes that the trainer left and the keeper ended."""

    survivors: list[str] = field(default_factory=list)
    """Processes that could not be ended (uninterruptible sleep)."""

    stopped: str = ""
    """Local time of the end, ISO 8601."""


@dataclass
class Run:
    """A run folder and what its marker says."""

    folder: Path
    id: str
    recipe: str
    host: str
    boot: str
    """Boot id of the machine: process ids of an earlier boot mean nothing."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def attempt(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    def file(self, name: str, number: int | None = None) -> Path:
        """Path of a file of an attempt: `train.log` of the first, `train.2.log` of the second."""
        number = self.attempt.number if number is None else number
        stem, _, suffix = name.rpartition(".")
        return self.folder / (name if number == 1 else f"{stem}.{number}.{suffix}")

    @property
    def is_elsewhere(self) -> bool:
        """Whether the newest attempt may still run on another host, which cannot be seen from here."""
        there = bool(self.host) and self.host != socket.gethostname()
        return there and self.attempt.state in UNFINISHED and not self.is_alive()

    def is_alive(self) -> bool:
        """Whether keeper or trainer of the newest attempt still run here; a machine keeps its boot id, not its name."""
        return self.boot == _boot_id() and any(
            _is_same_process(who) for who in (self.attempt.keeper, self.attempt.trainer)
        )

    def save(self) -> None:
        """Write the marker in one piece, so that a reader never sees half of it."""
        content = asdict(self) | {"folder": str(self.folder)}
        scratch = self.folder / f".{MARKER}.{os.getpid()}"
        scratch.write_text(json.dumps(content, indent=2) + "\n")
        scratch.replace(self.folder / MARKER)


def identity(pid: int) -> dict[str, int]:
    """`pid` and `start` of a process, which name it for good; empty when it has ended."""
    process = read_process(pid)
    return {"pid": pid, "start": process.start} if process is not None else {}


def _is_same_process(who: dict[str, int]) -> bool:
    process = read_process(who["pid"]) if who else None
    return process is not None and process.alive and process.start == who["start"]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def default_output(recipe: str) -> Path:
    """`outputs/<recipe>/<time>`, a folder that does not exist yet.

    Args:
        recipe: Name of a recipe, or of a user's own file without its folder and suffix.
    """
    base = Path("outputs") / recipe / time.strftime("%Y%m%d-%H%M%S")
    candidates = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 100))]
    return next(folder for folder in candidates if not folder.exists())


def load_run(folder: Path) -> Run | None:
    """Read the marker of a folder; None when there is none.

    Raises:
        ConfigError: The marker cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MARKER).read_text())
        attempts = [Attempt(**attempt) for attempt in content.pop("attempts")]
        if not attempts:
            raise ValueError("it lists no attempt")
        return Run(**content | {"folder": folder, "attempts": attempts})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise ConfigError(f"{folder / MARKER} is not a marker that this version can read: {err}") from err


def new_run(folder: Path, recipe: str, overrides: list[str]) -> Run:
    """Describe a run in a folder of its own; nothing is written before `claim`.

    Raises:
        ConfigError: The folder holds another run or anything else.
    """
    earlier = load_run(folder)
    if earlier is not None:
        raise ConfigError(
            f"{folder} is the output of run {earlier.id} of {earlier.recipe} ({earlier.attempt.state}): "
            "add --resume to go on with it, or give another --output"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and is not a run of verl-toolrl: give another --output")
    run_id = secrets.token_hex(4)
    run = Run(folder=folder.resolve(), id=run_id, recipe=recipe, host=socket.gethostname(), boot=_boot_id())
    run.attempts.append(_new_attempt(1, overrides))
    return run


def refuse_elsewhere(run: Run, *, remedy: str) -> None:
    """Refuse to touch a run that may be going on another host: a folder of a shared file system, another container.

    Args:
        run: The run as its marker has it.
        remedy: What to do if that host is gone.

    Raises:
        ConfigError: Its newest attempt is unfinished and was started there.
    """
    if run.is_elsewhere:
        raise ConfigError(
            f"run {run.id} in {run.folder} was started on {run.host}, where it may still run: stop it there; "
            f"if {run.host} is gone, {remedy}"
        )


def resumed_run(folder: Path, recipe: str, overrides: list[str], *, if_gone: str | None = "--force goes on") -> Run:
    """Describe another attempt of the run in a folder; nothing is written before `claim`.

    Args:
        folder: The run folder.
        recipe: The recipe, which must be that of the run.
        overrides: Hydra overrides of the user.
        if_gone: What a refusal names as the remedy where another host has not finished the run and is gone; None goes
            on with such a run.

    Raises:
        ConfigError: There is no run, it is of another recipe, it is still running, or it may run on another host.
    """
    run = load_run(folder)
    if run is None:
        raise ConfigError(f"{folder} holds no run (no {MARKER}): nothing to resume; without --resume a new run starts")
    if run.recipe != recipe:
        raise ConfigError(f"{folder} is a run of {run.recipe}, not of {recipe}: resume it with its own recipe")
    if run.is_alive():
        pid = run.attempt.keeper.get("pid")
        raise ConfigError(
            f"run {run.id} in {folder} is still going (process {pid}): `verl-toolrl stop {folder}` ends it"
        )
    if if_gone is not None:
        refuse_elsewhere(run, remedy=if_gone)
    run.folder, run.host, run.boot = folder.resolve(), socket.gethostname(), _boot_id()
    run.attempts.append(_new_attempt(run.attempt.number + 1, overrides))
    return run


def claim(run: Run) -> None:
    """Take the folder of a run and write its marker.

    Raises:
        ConfigError: The folder cannot be written, or another run took it meanwhile.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        # Two starts at once into one folder: whoever creates the log of the attempt has it.
        os.close(os.open(run.file("train.log"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        run.save()
    except FileExistsError as err:
        raise ConfigError(f"{run.folder} was taken by another run a moment ago: give another --output") from err
    except OSError as err:
        raise ConfigError(f"cannot write to the output folder {run.folder}: {err.strerror}") from err


def _new_attempt(number: int, overrides: list[str]) -> Attempt:
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    return Attempt(number=number, overrides=overrides, started=now, launcher=identity(os.getpid()))


def last_checkpoint(checkpoints: Path) -> int | None:
    """Step of the newest complete checkpoint in verl's folder; None when there is none."""
    try:
        # verl writes this file after the checkpoint (trainer/ppo/v1/trainer_base.py, _save_checkpoint).
        return int((checkpoints / "latest_checkpointed_iteration.txt").read_text())
    except (OSError, ValueError):
        return None
