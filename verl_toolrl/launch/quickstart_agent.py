"""The quickstart over several turns: a small model learns to find answers with tools, one call after the other.

    outputs/quickstart-agent/20260822-141500/
      quickstart.json   everything: settings, machine, stages, metrics, every trajectory before and after, differences
      data/             train, held_out (RL rows) and sft (an expert's conversations) as Parquet
      warmup/           run folder of verl's SFT trainer
      grpo/             run folder of verl's RL trainer; measured/0.jsonl and measured/N.jsonl are its validations
      model/            the trained model, a Hugging Face folder
      curves.png

The questions are those of `verl_toolrl.data.office`. It is measured by verl's own validation, greedily and with the
same tools, before the first step of GRPO and after the last one.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_toolrl.launch.board import Board, Line
from verl_toolrl.launch.quickstart import WARM_UP_ROWS, Quickstart, curve, link, span
from verl_toolrl.launch.recipes import quote
from verl_toolrl.launch.staged import STATE, Sizes, Work

if TYPE_CHECKING:
    from rich.console import Console

    from verl_toolrl.evaluation.paired import SetDifference

__all__ = ["AgentQuickstart"]

KINDS = ("price", "city_of_who", "stock_of_what", "phone_of_who")
"""Of questions; three in four need two calls. With two in four the model learned to answer after the first one."""
ROWS_A_STEP = len(KINDS)
"""Of GRPO, one of each kind, so that none is forgotten for the others; each is answered eight times."""
NAMES = ("after warm-up", "after GRPO")


class AgentQuickstart(Quickstart):
    """One quickstart over several turns and where it stands."""

    schema = "verl-toolrl/quickstart-agent/1"
    command = "quickstart-agent"
    recipe = "tool_agent/quickstart"
    warm_up_recipe = "tool_agent/quickstart_sft"
    full = Sizes(seen=128, unseen=0, no_tool=0, warm_up=16, steps=16)
    small = Sizes(seen=32, unseen=0, no_tool=0, warm_up=12, steps=3)

    def stages(self) -> dict[str, Work]:
        """Return the stages by name, in order; the measurements belong to GRPO."""
        return {"model": self._model, "data": self._rows, "warm_up": self._warm_up, "grpo": self._grpo}

    def titles(self) -> dict[str, str]:
        """Return what each stage is called."""
        return {
            "model": "model from its package",
            "data": "rows, and an expert's conversations",
            "warm_up": f"supervised warm-up, {self.sizes.warm_up} steps",
            "grpo": f"GRPO, {self.sizes.steps} steps, measured before and after on {self.sizes.seen} held-out rows",
        }

    @property
    def measured(self) -> Path:
        """Where verl writes its validations."""
        return self.folder / "grpo" / "measured"

    def _rows(self, board: Board, line: Line) -> dict[str, Any]:
        sizes = self.sizes
        # One step's rows to spare: the trainer makes one pass.
        train, sft = (sizes.steps + 1) * ROWS_A_STEP, sizes.warm_up * WARM_UP_ROWS
        shutil.rmtree(self.data, ignore_errors=True)
        write_rows(self.data, seed=self.settings.seed, train=train, sft=sft, held_out=sizes.seen)
        line.note = f"{train} to train on, {sft} conversations for the warm-up"
        return {"files": sorted(path.name for path in self.data.glob("*.parquet"))}

    def _grpo(self, board: Board, line: Line) -> dict[str, Any]:
        steps, folder = self.sizes.steps, self.folder / "grpo"
        overrides = [
            f"data.train_files={quote(str(self.data / 'train.parquet'))}",
            f"data.val_files={quote(str(self.data / 'held_out.parquet'))}",
            f"data.seed={self.settings.seed}",
            f"actor_rollout_ref.model.path={quote(str(self.warm_model))}",
            f"trainer.total_training_steps={steps}",
            f"trainer.save_freq={max(1, steps // 2)}",
            "trainer.val_before_train=true",
            f"trainer.test_freq={steps}",
            f"trainer.validation_data_dir={quote(str(self.measured))}",
        ]
        found = self.train(self.recipe, overrides, folder, steps, board)
        trained = folder / "checkpoints" / f"global_step_{steps}" / "actor" / "huggingface"
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        shutil.copytree(trained, self.folder / "model", copy_function=link)
        success = [
            100 * each["reward/seen/is_solved/mean"]
            for each in found["metrics"].values()
            if "reward/seen/is_solved/mean" in each
        ]
        line.note = f"success of its samples in %: {span(success, '.0f')}"
        return found

    def finish(self, console: Console) -> None:
        """Compare, draw, write everything into one file, and show it."""
        from verl_toolrl.evaluation.agent import compare_trajectories, figures_table, read_validation

        before, after = (read_validation(self.measured / f"{step}.jsonl") for step in (0, self.sizes.steps))
        found = compare_trajectories(before, after, seed=self.settings.seed)
        self.state |= {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "seconds": round(sum(stage["seconds"] for stage in self.state["stages"].values()), 1),
            "before": [asdict(score) for score in before],
            "after": [asdict(score) for score in after],
            "differences": asdict(found),
        }
        self.save()
        self._draw_figures(found)
        shutil.rmtree(self.folder / "grpo" / "checkpoints", ignore_errors=True)  # 2 GB; what goes on starts at model/
        title = f"{found.rows} held-out rows, greedy" + (f"; {found.left_out} left out" if found.left_out else "")
        console.print(figures_table(found, title=title, before=NAMES[0], after=NAMES[1]))
        for text in closing(self, found):
            console.print(text, highlight=False, soft_wrap=True)

    def _draw_figures(self, found: SetDifference) -> None:
        from verl_toolrl.evaluation.curves import draw_curves

        stages = self.state["stages"]
        grpo, warm_up = stages["grpo"]["metrics"], stages["warm_up"]["metrics"]
        panels = {
            "warm-up: loss": {"loss": curve(warm_up, "train/loss")},
            "GRPO: reward and success": {
                "reward": curve(grpo, "critic/score/mean"),
                "success": curve(grpo, "reward/seen/is_solved/mean"),
            },
            "GRPO: calls a trajectory": {
                name: curve(grpo, f"reward/seen/{key}/mean")
                for name, key in (("read", "calls"), ("worked", "successful_calls"), ("of use", "used_calls"))
            },
            "GRPO: steps": {"steps": curve(grpo, "reward/seen/steps/mean")},
        }
        shown = {"office": type(found)(found.rows, found.left_out, {"success": found.metrics["success"]})}
        title = f"{self.command}, seed {self.settings.seed}: SmolLM2-135M-Instruct, {self.sizes.steps} steps of GRPO"
        draw_curves(self.folder / "curves.png", title=title, panels=panels, sets=shown, names=NAMES)


def write_rows(folder: Path, *, seed: int, train: int, sft: int, held_out: int) -> None:
    """Write `train.parquet`, `held_out.parquet` and `sft.parquet`; no question stands in two of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.office import TOOLSET, expert_messages, make_tasks, rl_row
    from verl_toolrl.toolbox import Toolbox

    tasks = make_tasks(train + sft, seed=seed, kinds=KINDS)

    async def conversations() -> list[dict[str, Any]]:
        async with Toolbox.load(TOOLSET) as box:
            return [{"messages": await expert_messages(task, box)} for task in tasks[train:]]

    rows: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "train": [rl_row(task, index=index, split="train") for index, task in enumerate(tasks[:train])],
        "held_out": [
            rl_row(task, index=index, split="held_out")
            for index, task in enumerate(make_tasks(held_out, seed=seed, split="held_out", kinds=KINDS))
        ],
        "sft": asyncio.run(conversations()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(list(content)), folder / f"{name}.parquet")


def closing(quickstart: AgentQuickstart, found: SetDifference) -> list[str]:
    """What the run shows, what it does not, and where its files are."""
    success = found.metrics["success"]
    if success.low > 0:
        lines = ["On held-out rows the model finds the answer more often (the interval lies above 0)."]
    else:
        lines = ["Success did not rise beyond what its interval leaves open."]
    if quickstart.settings.fast:
        lines.append("--fast shows that every stage works on this machine, not how much the model learns.")
    else:
        lines.append(
            "An interval speaks of other rows of this kind, not of other seeds; the task is small and no benchmark."
        )
    files = {"model": "model/", "everything": STATE, "curves": "curves.png"}
    return lines + [f"{name}: {quickstart.folder / path}" for name, path in files.items()]
