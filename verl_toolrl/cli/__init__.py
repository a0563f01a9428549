"""The command line: `verl-toolrl ...`.

One module a command. Modules of this folder import only the standard library, typer and `verl_toolrl.errors` at their
top; what a command needs is imported inside it, so that `--help` and the light commands start in a fraction of a second
and never load torch or verl.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from verl_toolrl import __version__
from verl_toolrl.cli import (
    annotate,
    compare,
    data,
    doctor,
    evaluate,
    quickstart,
    recipes,
    reward,
    score,
    stop,
    tools,
    train,
)
from verl_toolrl.errors import ToolRLError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Tool-use reinforcement learning for verl.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"verl-toolrl {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


# Commands, a line each: app.command("name")(module.function), or app.add_typer(module.app, name="group").
app.command("doctor")(doctor.doctor)
app.command("quickstart")(quickstart.quickstart)
app.command("quickstart-agent")(quickstart.quickstart_agent)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("stop")(stop.stop)
app.command("score")(score.score)
app.add_typer(data.app, name="data")
app.add_typer(reward.app, name="reward")
app.add_typer(recipes.app, name="recipes")
app.command("annotate")(annotate.annotate)
app.add_typer(tools.app, name="tools")


def main() -> None:
    """Run the command line; an error of this package ends it with one readable line and exit code 1."""
    try:
        app()
    except ToolRLError as err:
        typer.secho(f"error: {err}", fg="red", err=True)
        sys.exit(1)
