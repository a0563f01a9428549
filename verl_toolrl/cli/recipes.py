"""`verl-toolrl recipes ...`: find, read, check and begin recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from verl_toolrl.launch.recipes import Recipe
    from verl_toolrl.recipe_check.finding import Report

__all__ = ["app"]

app = typer.Typer(help="List, show, check and begin recipes.", no_args_is_help=True)


@app.command()
def check(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]... [KEY=VALUE]...", help="Names or files, and overrides to compose them with."),
    ] = None,
    combinations: Annotated[
        bool, typer.Option("--combinations", "-c", help="Check every engine and rollout, not only those it names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write all findings as JSON.")] = False,
) -> None:
    """Find what Hydra accepts silently.

    Keys that are misspelt, renamed or that nothing reads any more, values of the wrong type, names that nobody
    registered, batch sizes that do not divide, lengths that the model cannot hold. Nothing is downloaded and no engine
    is needed: Megatron and SGLang recipes are checked where neither is installed.

    Without FILE all recipes of this package are checked, in every engine and rollout.

    Exits with 1 if something is wrong.

    Example: verl-toolrl recipes check mine.yaml hardware=gpu8
    """
    import contextlib
    import gc
    import json
    import sys

    # A tenth of the time is garbage collection with nothing to collect.
    gc.disable()
    # `python -m verl.trainer.main_ppo` finds a module that lies beside the recipe, so the check must find it, too.
    sys.path.insert(0, str(Path.cwd()))
    from verl_toolrl.launch.recipes import find_recipe, known_recipes
    from verl_toolrl.recipe_check import check as checker

    names, overrides = _split(recipes or [])
    found = [find_recipe(name) for name in names or known_recipes()]
    reports: list[Report] = []
    # What verl or a module of the user prints while it is imported is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        for recipe in found:
            variants = _combinations(recipe) if combinations or not names else [[]]
            reports += [checker.check_recipe(recipe, [*variant, *overrides]) for variant in variants]
    if as_json:
        import dataclasses

        typer.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=1))
    else:
        _print_reports(reports)
    if any(report.errors for report in reports):
        raise typer.Exit(1)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Names and overrides: `=` tells them apart, except in the path of a file that exists."""
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    return [word for word in words if word not in overrides], overrides


def _combinations(recipe: Recipe) -> list[list[str]]:
    from verl_toolrl.errors import ConfigError
    from verl_toolrl.recipe_check.check import combinations

    try:
        return combinations(recipe)
    except ConfigError:  # it does not compose: one check says why
        return [[]]


def _print_reports(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for report in reports:
        mark = "[red]wrong[/red]" if report.errors else "[green]ok[/green]   "
        console.print(f"{mark} {escape(report.label)}")
        for finding in report.findings:
            color = "red" if finding.is_error else "yellow"
            key = f"[bold]{escape(finding.key)}[/bold]: " if finding.key else ""
            place = f"{escape(finding.place)}: " if finding.place else ""
            console.print(f"      {place}[{color}]{key}[/{color}]{escape(finding.message)}")
    wrong = sum(bool(report.errors) for report in reports)
    errors = len({(finding.place, finding.key, finding.message) for report in reports for finding in report.errors})
    if errors:
        console.print(f"\n{errors} mistakes in {wrong} of {len(reports)} checked")
    else:
        console.print(f"\n{len(reports)} checked, nothing wrong")


@app.command("list")
def list_() -> None:
    """List the recipes, what each reproduces, what was run, and the choices that they are composed from."""
    import yaml
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from verl_toolrl.launch.recipes import known_recipes, recipe_folder
    from verl_toolrl.recipe_check.show import group_options

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title="Recipes", title_justify="left")
    for column in ("name", "what it is", "reproduces", "what was run"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name in known_recipes():
        about = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8"))["recipe"]
        table.add_row(name, about["title"], about["reproduces"], about["ran"])
    console.print(table)
    choices = Table(box=box.SIMPLE_HEAD, title="Choices, as in model=qwen2.5_3b", title_justify="left")
    choices.add_column("group", no_wrap=True)
    choices.add_column("options", overflow="fold")
    for group, options in group_options().items():
        choices.add_row(group, ", ".join(options))
    console.print(choices)


@app.command()
def show(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="NAME... [KEY=VALUE]...", help="Names or files, and overrides to compose them with."),
    ],
) -> None:
    """Print what a recipe changes against verl's defaults, with the reason for each line.

    Example: verl-toolrl recipes show toolrl/grpo engine=megatron
    """
    from verl_toolrl.errors import ConfigError
    from verl_toolrl.launch.recipes import find_recipe

    names, overrides = _split(recipes)
    if not names:
        raise ConfigError("give the name of a recipe; `verl-toolrl recipes list` prints them")
    for name in names:
        _print_recipe(find_recipe(name), overrides)


def _print_recipe(recipe: Recipe, overrides: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from verl_toolrl.launch.recipes import compose
    from verl_toolrl.recipe_check.show import GROUPS, changes

    composed = compose(recipe, overrides)
    console = Console()
    console.print(f"[bold]{escape(recipe.label)}[/bold] {escape(' '.join(overrides))}")
    for key in ("title", "reproduces", "ran"):
        if composed.get(f"recipe.{key}"):
            console.print(f"  {key}: {escape(str(composed.get(f'recipe.{key}')))}", highlight=False)
    chosen = composed.choices if "backend" in composed.choices else {}
    choices = [f"{group}={chosen[group]}" for group in GROUPS if group in chosen]
    if choices:
        console.print(f"  choices: {' '.join(choices)}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in ("key", "value", "verl's", "why"):
        table.add_column(column, overflow="fold")
    for change in changes(recipe, composed):
        default = "-" if change.is_new else _text(change.default)
        key = change.key.replace("actor_rollout_ref.", "")
        table.add_row(escape(key), escape(_text(change.value)), escape(default), escape(change.comment))
    console.print(table)
    if "actor_rollout_ref" in composed.config:
        console.print("  actor, rollout, ref and model stand under actor_rollout_ref.", highlight=False)


def _text(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the recipe: NAME.yaml is written here. A path is allowed.")],
    like: Annotated[
        str, typer.Option(help="Recipe to build on; `verl-toolrl recipes list` prints them.")
    ] = "toolrl/grpo",
) -> None:
    """Write a commented start for a recipe of your own that passes the check.

    Example: verl-toolrl recipes new mine --like toolrl/ppo
    """
    from verl_toolrl.recipe_check.new import write_recipe

    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    write_recipe(path, like)
    typer.echo(f"wrote {path}\nnext: verl-toolrl recipes check {path}")
