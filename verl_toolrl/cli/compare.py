"""`verl-toolrl compare`: one recipe in several variants with several seeds, a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_toolrl.errors import ConfigError

__all__ = ["compare"]


def compare(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe, or path of your own YAML file.")
    ] = "toolrl/quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of all runs, in Hydra's grammar.")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Names of the recipe's groups `variant` and `method`, with commas.")
    ] = "released,coarse,tool_n1,gdpo",
    variant: Annotated[
        list[str] | None, typer.Option(help="One more: 'NAME: OVERRIDE OVERRIDE ...'. May be repeated.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers, with commas.")] = "1,2",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; what has finished there is kept.")] = Path(
        "outputs/compare"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each run. Default: the recipe's.")] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations. Default: only first and last.")
    ] = None,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare",
            help="Make rows from the quickstart's tools and warm the quickstart's model up first (without a GPU).",
        ),
    ] = False,
    rows: Annotated[int, typer.Option(min=8, help="With --prepare: rows to train on.")] = 128,
    held_out: Annotated[
        int,
        typer.Option(
            min=8, help="With --prepare: rows to measure on; a quarter as many that no tool fits come beside."
        ),
    ] = 128,
    warm_up: Annotated[int, typer.Option(min=1, help="With --prepare: supervised steps of 4 rows.")] = 20,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if memory is short or `recipes check` finds mistakes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands that would run, and leave.")] = False,
) -> None:
    """Compare rewards and methods: train a recipe in several variants with several seeds, then print a table.

    What is compared is what validation logs for every reward alike: exact matches, layout, missed and needless calls,
    before and after training. Writes compare.json and compare.png. Stopped, the same command goes on where it was.

    Example: verl-toolrl compare toolrl/quickstart --prepare --steps 16 --variants released,coarse,tool_n1,gdpo
    """
    from verl_toolrl.launch.comparison import HEADER, planned, read_variants, run_all, summary, table, write
    from verl_toolrl.launch.console import LastingConsole
    from verl_toolrl.launch.launcher import plan_run
    from verl_toolrl.launch.prepared import prepare as prepare_rows

    console = LastingConsole()
    chosen = read_variants([*(name for name in variants.split(",") if name.strip()), *(variant or [])])
    numbers = _seeds(seeds)
    settings = list(overrides or [])
    if prepare:
        sizes = {"rows": rows, "held_out": held_out, "warm_up": warm_up}
        settings += prepare_rows(output.absolute(), console, **sizes, force=force, dry_run=dry_run)
    settings.append(f"trainer.test_freq={every or 1_000_000}")
    if steps is not None:
        settings.append(f"trainer.total_training_steps={steps}")
    if dry_run:
        for each, seed, given in planned(chosen, numbers, settings):
            folder = output / f"{each.name}-seed{seed}"
            plan = plan_run(recipe, given, output=folder, resume=False, force=True, dry_run=True, files_to_come=prepare)
            console.out(plan.command.shell_line(), highlight=False)
        return
    runs = run_all(recipe, chosen, numbers, settings, output, console, force=force)
    result = summary(runs, recipe=recipe, overrides=settings)
    write(result, output)
    _print(table(result), HEADER, console, len(numbers))
    console.out(f"{output / 'compare.json'}, {output / 'compare.png'}", highlight=False)


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as err:
        raise ConfigError(f"--seeds: {text!r}, wanted whole numbers with commas") from err
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ConfigError(f"--seeds: {text!r}, wanted different numbers from 0 on")
    return numbers


def _print(rows: list[list[str]], header: list[str], console: object, seeds: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    each = "the seed" if seeds == 1 else f"{seeds} seeds (and each)"
    for source in dict.fromkeys(row[1] for row in rows):
        title = f"{source} (%): before -> after, mean of {each}; s a step"
        shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
        for name in [header[0], *header[2:]]:
            shown.add_column(name, no_wrap=True, justify="left" if name == header[0] else "right")
        for row in rows:
            if row[1] == source:
                shown.add_row(row[0], *row[2:])
        console.print(shown)
