"""`verl-toolrl train`: run a recipe with verl's own trainer and leave nothing running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe, such as toolrl/quickstart, or path of your own YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that replace those of the recipe, in Hydra's grammar: trainer.total_training_steps=100",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run folder. By default a new one, outputs/RECIPE/TIME.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, from its last checkpoint.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what verl, Ray and the engine write (it is in train.log too).")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Start even if memory is short, `recipes check` finds mistakes or another host may still run it.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what a start checks, print the command that would run, and leave.")
    ] = False,
) -> None:
    """Train with a recipe: prints the verl command it runs, shows live progress, leaves no process behind.

    The printed line works by itself, without this wrapper. The run folder holds the composed configuration, the log,
    the metrics (a JSON object a step) and the checkpoints.

    Ctrl-C ends a run within seconds, a second Ctrl-C at once. A run also ends with the program that started it (a
    script, make), unless it was started with nohup, setsid or &.

    Exit codes: 0 trained, 1 refused before the start, 3 the run failed, 130 Ctrl-C (128 + signal).
    """
    from verl_toolrl.launch.console import LastingConsole
    from verl_toolrl.launch.launcher import execute, plan_run, report

    console = LastingConsole()
    plan = plan_run(recipe, overrides or [], output=output, resume=resume, force=force, dry_run=dry_run)
    console.out(plan.command.shell_line(), highlight=False)
    for note in plan.notes:
        if dry_run:  # whose standard output is the command alone
            typer.echo(note, err=True)
        else:
            console.out(note, highlight=False)
    if dry_run:
        return
    if plan.cluster is not None:
        console.print(f"joins the Ray cluster at {plan.cluster}, which is left running")
    if resume:
        step = plan.resume_step
        console.print(f"goes on from step {step}" if step is not None else "no checkpoint was saved: begins anew")
    run, progress = execute(plan, console, verbose=verbose)
    raise typer.Exit(report(run, progress, plan, console))
