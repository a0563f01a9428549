"""Runs a recipe from the first check to the last process: what `verl-toolrl train` does.

The launcher draws and takes signals; the keeper (a process of its own) ends the run. Either may be killed: the keeper
sees the pipe break, the launcher sees the keeper gone and does its work.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.versions import check_installed_verl
from verl_toolrl.launch.command import Command, build_command, ray_cluster
from verl_toolrl.launch.failure import last_error, tail_of
from verl_toolrl.launch.keeper import describe_exit
from verl_toolrl.launch.metrics import records_of
from verl_toolrl.launch.preflight import check_engine, check_files, check_memory, check_ports, check_recipe
from verl_toolrl.launch.processes import Process, adopt_orphans, descendants, members, process_table
from verl_toolrl.launch.progress import Progress, duration
from verl_toolrl.launch.recipes import Composed, compose, find_recipe, override_key
from verl_toolrl.launch.runs import (
    UNFINISHED,
    Run,
    claim,
    default_output,
    last_checkpoint,
    load_run,
    new_run,
    resumed_run,
)
from verl_toolrl.launch.stop import stop_run, sweep

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    *("EXIT_FAILED", "Plan"),
    *("execute", "follows_parent", "lacks_last_validation", "plan_run", "report", "saving_note"),
]

EXIT_FAILED = 3
"""Exit code where the run started and failed; 1 is bad input, 128 + n a signal that interrupted it."""


_REASONS = {
    "SIGINT": "Ctrl-C",
    "SIGTERM": "told to end (SIGTERM)",
    "SIGHUP": "the terminal was closed (SIGHUP)",
    "parent-gone": "the program that started the run is gone",
    "launcher-gone": "the launcher was killed",
    "stopped": "ended by verl-toolrl stop",
}


@dataclass(frozen=True)
class Plan:
    """A run that may start: everything was checked and its folder is taken."""

    run: Run
    command: Command
    composed: Composed
    total_steps: int | None
    cluster: str | None
    """Ray cluster that is joined and left alone; None when the run starts its own."""

    resume_step: int | None
    """Checkpoint that verl goes on from; None at a first start, or when no checkpoint was saved."""

    notes: tuple[str, ...] = ()
    """What is to be said before the start."""


def plan_run(
    recipe_text: str,
    overrides: list[str],
    *,
    output: Path | None,
    resume: bool,
    force: bool,
    can_force: bool = True,
    dry_run: bool = False,
    files_to_come: bool = False,
) -> Plan:
    """Check everything that can be checked, then take the run folder.

    Args:
        recipe_text: Name or path of the recipe.
        overrides: Hydra overrides of the user.
        output: Run folder; by default a new one below `outputs/`.
        resume: Go on with the run of `output`.
        force: Start even if memory is short, `recipes check` finds mistakes or the run may go on on another host.
        can_force: Whether the command has `--force`, which a refusal then names. Without it the recipe is one of ours
            with settings of ours, and is not checked.
        dry_run: Write nothing.
        files_to_come: Whether data and model are made by a stage before this run.

    Raises:
        ConfigError: Something is wrong with the input; nothing was started or changed.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"verl trains on Linux, this is {sys.platform}")
    if resume and output is None:
        raise ConfigError("--resume needs --output DIR, the folder of the run to go on with")
    recipe = find_recipe(recipe_text)  # says as well if there is no verl
    check_installed_verl()
    composed = compose(recipe, overrides)
    if not files_to_come:
        check_files(composed)
    check_ports(composed)
    if not force:
        check_memory(composed, can_force=can_force)
    folder = output or default_output(recipe.name)
    if resume:
        if_gone = "--force goes on" if can_force else f"remove {folder} to begin the stage anew"
        run = resumed_run(folder, recipe.label, overrides, if_gone=None if force else if_gone)
    else:
        run = new_run(folder, recipe.label, overrides)
    total = composed.get("trainer.total_training_steps")
    checkpoints = checkpoint_folder(run, composed)
    saved = last_checkpoint(checkpoints) if resume else None
    at_end = saved is not None and isinstance(total, int) and saved >= total
    if at_end and not lacks_last_validation(run, composed, saved):
        raise ConfigError(
            f"{folder} has reached its last step ({saved}): trainer.total_training_steps=N goes on to a later one"
        )
    cluster = ray_cluster(composed, os.environ)
    if cluster is None:  # a cluster's nodes may have what this machine has not
        check_engine(composed)
    notes = saving_note(composed)
    if can_force and not force:
        notes += check_recipe(recipe, overrides, composed, rows=not files_to_come)
    command = build_command(recipe, run, composed, resume=resume, cluster=cluster, only_validate=at_end)
    run.attempt.command = command.shell_line()
    if not dry_run:
        if resume and run.attempts[-2].state in UNFINISHED:
            # Launcher and keeper of the last attempt were killed, so that nobody has tidied up after it.
            stop_run(run.id, str(run.folder), force=force)
            tidied = load_run(run.folder)
            run.attempts[:-1] = tidied.attempts if tidied is not None else run.attempts[:-1]
        claim(run)
        run.file("config.yaml").write_text(composed.to_yaml(command.environment))
    return Plan(
        run=run,
        command=command,
        composed=composed,
        total_steps=total if isinstance(total, int) else None,
        cluster=cluster,
        resume_step=saved,
        notes=tuple(notes),
    )


def checkpoint_folder(run: Run, composed: Composed) -> Path:
    """Where the run saves checkpoints: `checkpoints/` of its folder, unless the user says otherwise.

    Raises:
        ConfigError: What the user says is no folder.
    """
    key = "trainer.default_local_dir"
    if all(override_key(override) != key for override in run.attempt.overrides):
        return run.folder / "checkpoints"
    given = composed.get(key)
    if not isinstance(given, str):
        raise ConfigError(f"{key}: a folder is wanted, found {'null' if given is None else repr(given)}")
    return Path(given)


def saving_note(composed: Composed) -> list[str]:
    """Say that a run saves nothing on its way; empty where it saves."""
    frequency = composed.get("trainer.save_freq")
    if not isinstance(frequency, int) or frequency > 0:
        return []
    # The supervised trainer saves its last step in any case (verl/trainer/sft_trainer.py), the RL trainer does not
    # (trainer/ppo/v1/trainer_base.py).
    what = "saves no checkpoint" if "actor_rollout_ref" in composed.config else "saves only its last step"
    return [f"{what} (trainer.save_freq={frequency}): trainer.save_freq=N saves every N steps"]


def lacks_last_validation(run: Run, composed: Composed, step: int | None) -> bool:
    """Whether a run that has saved its last step was ended before the validation that verl makes after it."""
    frequency = composed.get("trainer.test_freq")
    if "ray_kwargs" not in composed.config or not isinstance(frequency, int) or frequency <= 0:
        return False
    return not any(at == step and any(key.startswith("val-") for key in found) for at, found in records_of(run))


class _Signals:
    """Signals that end a run, in the order they came. What the parent told us to ignore stays ignored (nohup)."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, lambda s, _: self.seen.append(signal.Signals(s).name))
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]


def follows_parent() -> bool:
    """Whether the run should end with the process that started it.

    A script, `make` or a test that starts a run in its own process group and dies must not leave it behind. A run from
    an interactive shell leads a process group of its own and hears of the terminal's end by SIGHUP; `nohup`, `setsid`
    and `&` in a script ask for a run that outlives its starter, and show in the signals and the group.
    """
    if any(signal.getsignal(signum) is signal.SIG_IGN for signum in (signal.SIGHUP, signal.SIGINT)):
        return False
    with contextlib.suppress(OSError):
        return os.getppid() > 1 and os.getpgid(os.getppid()) == os.getpgid(0)
    return False


def execute(
    plan: Plan,
    console: Console,
    *,
    verbose: bool = False,
    patience: float = 4.0,
    frame: Callable[[RenderableType], RenderableType] | None = None,
) -> tuple[Run, Progress]:
    """Run a plan to its end, drawing its progress.

    Args:
        plan: What to run.
        console: Where to draw; a panel on a terminal, lines elsewhere. One that raises when its reader is gone
            (`LastingConsole` does not) ends the run.
        verbose: Show the trainer's own output as well.
        patience: Seconds that the trainer gets to end by itself when the run is interrupted.
        frame: Puts the panel into a larger picture, which is taken off the screen at the end.

    Returns:
        (the run with its outcome, what was seen of it).
    """
    run = plan.run
    with _Signals() as signals:
        parent = os.getppid() if follows_parent() else None
        own_children = descendants([os.getpid()], process_table())
        adopt_orphans()
        keeper = _start_keeper(plan, patience)
        assert keeper.stdin is not None
        progress = Progress(
            metrics_file=run.file("metrics.jsonl"),
            log=run.file("train.log"),
            title=f"{run.recipe}  {run.folder}",
            total_steps=plan.total_steps,
        )
        for earlier in range(1, run.attempt.number):
            progress.recall(run.file("metrics.jsonl", earlier), up_to=plan.resume_step or -1)
        told = 0
        with _display(progress, console, frame, live=console.is_terminal and not verbose) as show:
            while keeper.poll() is None:
                if parent is not None and os.getppid() != parent:
                    parent = None
                    if not signals.seen:  # the kernel may have told us already
                        signals.seen.append("parent-gone")
                for name in signals.seen[told:]:
                    told += 1
                    # Told first: whoever reads what is drawn may be gone, or in no hurry.
                    with contextlib.suppress(OSError):
                        os.write(keeper.stdin.fileno(), b"kill\n" if told > 1 else f"{name}\n".encode())
                    again = "once more ends it at once" if told == 1 else "at once"
                    console.print(f"{_REASONS.get(name, name)}: ending the run ({again})", highlight=False)
                show(verbose)
                time.sleep(0.2)
            show(verbose)
        run = load_run(run.folder) or run
        if run.attempt.state in UNFINISHED:
            _stand_in(run, keeper.returncode, own_children)
    return run, progress


def _start_keeper(plan: Plan, patience: float) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "verl_toolrl.launch.keeper", str(plan.run.folder), f"--patience={patience}"]
    with open(plan.run.file("train.log"), "ab") as log:
        return subprocess.Popen(
            [*argv, "--", *plan.command.argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **plan.command.environment, **plan.command.bookkeeping},
            start_new_session=True,
            bufsize=0,
        )


def _stand_in(run: Run, keeper_code: int | None, own_children: set[int]) -> None:
    """Do the keeper's work after it was killed: its orphans are our children now."""

    def find() -> list[Process]:
        return [process for process in members(run.id, roots=[os.getpid()]) if process.pid not in own_children]

    sweep(run.id, find, run=run, reason="died", died=f"the keeper of the run ({describe_exit(keeper_code)})")


@contextlib.contextmanager
def _display(
    progress: Progress, console: Console, frame: Callable[[RenderableType], RenderableType] | None, *, live: bool
) -> Iterator[Callable[[bool], None]]:
    """Yield the function that reads and draws what is new."""
    from rich.live import Live

    phase = ""

    def lines(verbose: bool) -> None:
        nonlocal phase
        steps, log_lines = progress.poll()
        if verbose:
            for line in log_lines:
                console.out(line, highlight=False)
        if progress.phase != phase and not progress.steps:
            phase = progress.phase
            console.out(f"{phase} ... ({duration(time.monotonic() - progress.begun)})", highlight=False)
        for text in progress.take_said():
            if not verbose:
                console.out(text, highlight=False)
        for step in steps:
            console.out(progress.line(step), highlight=False)

    if not live:
        yield lines
        return

    def picture() -> RenderableType:
        return frame(progress.panel()) if frame is not None else progress.panel()

    with Live(picture(), console=console, refresh_per_second=4, transient=frame is not None) as screen:

        def draw(_: bool) -> None:
            progress.poll()
            for text in progress.take_said():
                console.out(text, highlight=False)
            screen.update(picture())

        yield draw


def report(run: Run, progress: Progress, plan: Plan, console: Console) -> int:
    """Say how the run ended and how to go on; returns the exit code for the shell."""
    attempt = run.attempt
    log = run.file("train.log")
    checkpoints = checkpoint_folder(run, plan.composed)
    saved = last_checkpoint(checkpoints)
    if attempt.state == "finished":
        console.print(f"[green]finished[/]: {progress.summary()}", highlight=False)
        console.out(f"run folder: {run.folder}", highlight=False)
        if saved is not None:
            console.out(f"checkpoint of step {saved}: {checkpoints / f'global_step_{saved}'}", highlight=False)
        if attempt.ended_processes:
            console.out(f"processes left by the trainer and ended: {len(attempt.ended_processes)}", highlight=False)
        return 0
    at = f" at step {progress.steps[-1]}" if progress.steps else " before the first step was done"
    console.print(f"[red]{attempt.state}[/]{at}: {_REASONS.get(attempt.reason, attempt.reason)}", highlight=False)
    if attempt.state == "failed":
        for line in last_error(log) or ([] if attempt.died else [line for line in tail_of(log) if line][-3:]):
            console.out(f"  {line}", highlight=False)
    for survivor in attempt.survivors:
        console.print(f"[red]still there, could not be ended[/]: {survivor}", highlight=False)
    console.out(f"log: {log}", highlight=False)
    where = (
        f"from the checkpoint of step {saved}" if saved is not None else "from the beginning: no checkpoint was saved"
    )
    console.out(f"to resume ({where}):\n  {resume_line(run)}", highlight=False)
    if attempt.state == "failed":
        return EXIT_FAILED
    return 128 + getattr(signal, attempt.reason, signal.SIGTERM)


def resume_line(run: Run) -> str:
    """The command that goes on with a run."""
    words = [
        "verl-toolrl",
        "train",
        run.recipe,
        *run.attempt.overrides,
        "--output",
        str(_short(run.folder)),
        "--resume",
    ]
    return " ".join(shlex.quote(word) for word in words)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
