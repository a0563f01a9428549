"""Rows and a warmed-up model for a comparison on a machine without a GPU, made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import quote

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["prepare"]


def prepare(
    folder: Path,
    console: Console,
    *,
    rows: int,
    held_out: int,
    warm_up: int,
    seed: int = 1,
    force: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Make rows from the quickstart's tools and warm the quickstart's model up; what is there already is kept.

    Args:
        folder: Where to.
        console: Where progress is drawn.
        rows: To train on.
        held_out: To measure on, with a call each; a quarter as many that no tool fits come beside.
        warm_up: Supervised steps.
        seed: Of the rows.
        force: Start even if less memory is free than the recipe needs.
        dry_run: Make nothing.

    Returns:
        Overrides that name files and model.

    Raises:
        ConfigError: If the warm-up does not finish.
    """
    data, warm = folder / "data", folder / "warmup"
    model = warm / "checkpoints" / f"global_step_{warm_up}" / "huggingface"
    overrides = [
        f"data.train_files={quote(str(data / 'train.parquet'))}",
        f"data.val_files=[{quote(str(data / 'seen.parquet'))},{quote(str(data / 'no_tool.parquet'))}]",
        f"actor_rollout_ref.model.path={quote(str(model))}",
    ]
    if dry_run:
        return overrides

    from verl_toolrl.data.world import make_world, write_world
    from verl_toolrl.launch.launcher import execute, plan_run, report
    from verl_toolrl.launch.machine import export_model
    from verl_toolrl.launch.quickstart import WARM_UP_ROWS, small_world
    from verl_toolrl.launch.runs import load_run

    spec = small_world(
        seed=seed, train=rows, sft=warm_up * WARM_UP_ROWS, seen=held_out, unseen=0, no_tool=max(1, held_out // 4)
    )
    write_world(make_world(spec), data)
    earlier = load_run(warm)
    if earlier is None or earlier.attempt.state != "finished":
        console.rule("supervised warm-up")
        settings = [
            f"data.train_files={quote(str(data / 'sft.parquet'))}",
            f"model.path={quote(str(export_model()))}",
            f"trainer.total_training_steps={warm_up}",
            f"trainer.seed={seed}",
        ]
        plan = plan_run("toolrl/quickstart_sft", settings, output=warm, resume=earlier is not None, force=force)
        run, progress = execute(plan, console)
        if run.attempt.state != "finished":
            report(run, progress, plan, console)
            raise ConfigError("the warm-up did not finish; the same command goes on there")
    return overrides
