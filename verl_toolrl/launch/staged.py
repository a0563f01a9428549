"""A run in stages that can be stopped and gone on with: what both quickstarts share.

The stages are the commands that a user would run by hand. `quickstart.json` is written after each, so that a run that
was stopped goes on where it was: at the stage, in a training at the checkpoint, in a measurement at the row.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.board import Board, Line
from verl_toolrl.launch.launcher import execute, follows_parent, lacks_last_validation, plan_run, report
from verl_toolrl.launch.machine import describe_machine
from verl_toolrl.launch.metrics import Metrics
from verl_toolrl.launch.preflight import check_memory
from verl_toolrl.launch.processes import die_with_parent
from verl_toolrl.launch.progress import Progress
from verl_toolrl.launch.recipes import compose, find_recipe
from verl_toolrl.launch.runs import Run, last_checkpoint, load_run

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STATE", "Ended", "Settings", "Sizes", "StagedRun", "Work"]

STATE = "quickstart.json"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seen: int
    """Held-out rows of each set."""
    unseen: int
    no_tool: int
    warm_up: int
    """Supervised steps."""
    steps: int
    """GRPO steps."""


@dataclass(frozen=True)
class Settings:
    """What the user chose, with what follows from it."""

    seed: int
    fast: bool
    sizes: Sizes


Work = Callable[[Board, Line], dict[str, Any]]
"""A stage: returns what belongs into the state, and says in `line.note` what came out."""


class Ended(Exception):
    """A stage was interrupted or its trainer failed; that was reported already."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class StagedRun(ABC):
    """A run in stages and where it stands."""

    command: ClassVar[str]
    """Its name on the command line."""
    schema: ClassVar[str]
    recipe: ClassVar[str]
    full: ClassVar[Sizes]
    small: ClassVar[Sizes]
    """Sizes with `--fast`."""

    def __init__(self, folder: Path, settings: Settings, state: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.state = state

    @classmethod
    def choose(cls, *, seed: int = 1, steps: int | None = None, fast: bool = False) -> Settings:
        """Complete a choice with the sizes of this kind of run."""
        sizes = cls.small if fast else cls.full
        return Settings(seed, fast, Sizes(**{**asdict(sizes), **({"steps": steps} if steps else {})}))

    @classmethod
    def new(cls, folder: Path, settings: Settings) -> Self:
        """Begin in a folder of its own.

        Raises:
            ConfigError: The folder holds another run or anything else.
        """
        if (folder / STATE).exists():
            raise ConfigError(
                f"{folder} is the output of another quickstart: add --resume to go on with it, or give another --output"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already and is no quickstart: give another --output")
        state = {
            "schema": cls.schema,
            "settings": asdict(settings),
            "environment": describe_machine(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "stages": {},
        }
        return cls(folder.absolute(), settings, state)

    @classmethod
    def resumed(cls, folder: Path, *, seed: int | None, steps: int | None, fast: bool) -> Self:
        """Go on in the folder of a run that was stopped; what is given must be what it was started with.

        Raises:
            ConfigError: There is no quickstart, or it was started with other settings.
        """
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            if state["schema"] != cls.schema:
                raise ConfigError(f"{folder / STATE} is of another version ({state['schema']}, not {cls.schema})")
            chosen = state["settings"]
            settings = Settings(chosen["seed"], chosen["fast"], Sizes(**chosen["sizes"]))
        except (FileNotFoundError, NotADirectoryError) as err:
            raise ConfigError(f"{folder} holds no quickstart (no {STATE}): nothing to resume") from err
        except (OSError, ValueError, KeyError, TypeError) as err:
            if isinstance(err, ConfigError):
                raise
            raise ConfigError(f"{folder / STATE} cannot be read: {err}") from err
        for name, given, before in (
            ("--seed", seed, settings.seed),
            ("--steps", steps, settings.sizes.steps),
            ("--fast", fast or None, settings.fast),
        ):
            if given is not None and given != before:
                raise ConfigError(f"{folder} was started with {name} {before}, not {given}: give another --output")
        return cls(folder.absolute(), settings, state)

    @abstractmethod
    def stages(self) -> dict[str, Work]:
        """Return the stages by name, in order."""

    @abstractmethod
    def titles(self) -> dict[str, str]:
        """Return what each stage is called."""

    @abstractmethod
    def finish(self, console: Console) -> None:
        """Write and show what came out."""

    @property
    def sizes(self) -> Sizes:
        return self.settings.sizes

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def run(self, console: Console) -> None:
        """Do what is left to do, and show what came out.

        Raises:
            Ended: A stage was interrupted or failed, which was reported; its work is kept.
            ConfigError, InfrastructureError: A stage failed.
        """
        stages = self.stages()
        if "grpo" not in self.state["stages"]:
            check_memory(compose(find_recipe(self.recipe), []), can_force=False)  # before the minutes that come first
        board = Board(console, f"{self.command}  seed {self.settings.seed}  {self.folder}", self.titles())
        with self._alone(), _interruptible():
            self.save()
            for name, work in stages.items():
                earlier = self.state["stages"].get(name)
                if earlier is not None:
                    board.recall(name, earlier["seconds"], earlier["note"])
                    continue
                with board.stage(name, draws=name in ("warm_up", "grpo")) as line:
                    found = work(board, line)
                self.state["stages"][name] = {"seconds": round(line.seconds, 1), "note": line.note, **found}
                self.save()
            if console.is_terminal:
                console.print(board.table())
            self.finish(console)

    def train(self, recipe: str, overrides: list[str], folder: Path, steps: int, board: Board) -> dict[str, Any]:
        """Run a recipe, from its last checkpoint if the folder has one."""
        earlier = load_run(folder)
        if earlier is not None and last_checkpoint(folder / "checkpoints") == steps:
            # Stopped between the last step and our note, or in the validation that follows the step.
            if not lacks_last_validation(earlier, compose(find_recipe(recipe), overrides), steps):
                return _found(earlier.attempt.command, _all_metrics(earlier))
        plan = plan_run(recipe, overrides, output=folder, resume=earlier is not None, force=False, can_force=False)
        if not board.console.is_terminal:
            board.console.out(plan.command.shell_line(), highlight=False)
        run, progress = execute(plan, board.console, frame=board.frame)
        if run.attempt.state != "finished":
            raise Ended(report(run, progress, plan, board.console))
        return _found(plan.command.shell_line(), progress.records)

    def save(self) -> None:
        """Write the state.

        Raises:
            ConfigError: The folder cannot be written to.
        """
        from verl_toolrl.evaluation.result import write_json

        try:
            write_json(self.folder / STATE, self.state)
        except OSError as err:
            raise ConfigError(f"cannot write to the output folder {self.folder}: {err.strerror}") from err

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder, so that a second --resume does not work in it at the same time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "w")
        except OSError as err:
            raise ConfigError(f"cannot write to the output folder {self.folder}: {err.strerror}") from err
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                raise ConfigError(f"the quickstart in {self.folder} is still going") from err
            yield


def _found(command: str, records: Mapping[int, Metrics]) -> dict[str, Any]:
    """What a training stage leaves in quickstart.json."""
    return {"command": command, "metrics": {str(step): records[step] for step in sorted(records)}}


def _all_metrics(run: Run) -> dict[int, Metrics]:
    """Metrics of all attempts of a run, by step."""
    progress = Progress(metrics_file=run.file("metrics.jsonl"), log=run.file("train.log"), title="")
    for number in range(1, run.attempt.number + 1):
        progress.recall(run.file("metrics.jsonl", number), up_to=sys.maxsize)
    return progress.records


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does, and the end of a `make` or script that started it.

    What the parent told us to ignore stays ignored (nohup).
    """

    def interrupt(signum: int, frame: object) -> None:
        raise Ended(128 + signum)

    before = {
        signum: signal.signal(signum, interrupt)
        for signum in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    if follows_parent() and signal.SIGTERM in before:
        die_with_parent()  # the kernel sends SIGTERM; a training that is under way ends its processes first
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
