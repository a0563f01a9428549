"""`verl-toolrl stop`: end what is left of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_toolrl.errors import ConfigError

__all__ = ["stop"]


def stop(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="Run folder or run id; not needed while one run is there.", show_default=False
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="End all runs of this user on this machine.")] = False,
) -> None:
    """End a run that is still going, or the processes that a killed one left.

    Only processes that carry the mark of `verl-toolrl train` are ended, and those that descend from them. Without
    arguments the only run there is is ended; where there are several, they are listed.

    Exit codes: 0 nothing is left, 1 bad input, 3 a process could not be ended.
    """
    from verl_toolrl.launch.stop import find_runs, stop_run

    if run is not None and everything:
        raise ConfigError("give a run or --all, not both")
    found = find_runs(run, everything=everything)
    if not found:
        typer.echo("no run is going and nothing was left behind")
        return
    survivors, refused = 0, False
    folder = run if run is not None and Path(run).is_dir() else ""
    for run_id in found:
        try:
            outcome = stop_run(run_id, folder)
        except ConfigError as err:  # of several, the others are ended all the same
            typer.secho(f"error: {err}", fg="red", err=True)
            refused = True
            continue
        typer.echo(outcome.text())
        survivors += len(outcome.survivors)
    if survivors:
        raise typer.Exit(3)
    if refused:
        raise typer.Exit(1)
