"""`verl-toolrl quickstart`: a small real model learns to call tools on this machine, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_toolrl.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from verl_toolrl.launch.staged import StagedRun

__all__ = ["quickstart", "quickstart_agent"]


def quickstart(
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of rows, order and sampling; 1.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of GRPO; 48, with --fast 4.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; by default a new one below outputs/quickstart/."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, at the stage where it stopped.")
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Fewer steps and rows: shows that every stage works, not how much the model learns.",
        ),
    ] = False,
) -> None:
    """Train SmolLM2-135M to call tools with verl's own trainer and a real vLLM, on two cores.

    Six stages: the model from its PyPI package, rows made from the schemas of the ready-made tools, a supervised
    warm-up that teaches the form, a measurement on held-out rows, GRPO with ToolRL's reward, the measurement again. At
    the end a table with paired bootstrap intervals for tools that were seen, tools that were not, and questions that no
    tool fits; responses before and after; curves; a Hugging Face folder of the trained model.

    Exit codes: 0 done, 1 refused before the start, 3 a stage failed, 128 + n ended by a signal.
    """
    from verl_toolrl.launch.quickstart import Quickstart

    _go(Quickstart, seed=seed, steps=steps, output=output, resume=resume, fast=fast)


def quickstart_agent(
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of rows, order and sampling; 1.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of GRPO; 16, with --fast 3.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; by default a new one below outputs/quickstart-agent/."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, at the stage where it stopped.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Shows that every stage works, not how much the model learns.")
    ] = False,
) -> None:
    """Train SmolLM2-135M to find answers with tools over several turns, on two cores.

    Four stages: the model from its PyPI package, questions about an office that only its tools can answer, a supervised
    warm-up on an expert's conversations, and GRPO with StepTool's reward, measured before and after on held-out
    questions. At the end a table with paired bootstrap intervals (success, calls, wrong calls, needless calls, steps),
    curves, and a Hugging Face folder of the trained model.

    Exit codes: 0 done, 1 refused before the start, 3 a stage failed, 128 + n ended by a signal.
    """
    from verl_toolrl.launch.quickstart_agent import AgentQuickstart

    _go(AgentQuickstart, seed=seed, steps=steps, output=output, resume=resume, fast=fast)


def _go(
    kind: type[StagedRun], *, seed: int | None, steps: int | None, output: Path | None, resume: bool, fast: bool
) -> None:
    """Run a quickstart to its end and leave with its exit code."""
    import shlex

    from verl_toolrl.launch.console import LastingConsole
    from verl_toolrl.launch.launcher import EXIT_FAILED
    from verl_toolrl.launch.runs import default_output
    from verl_toolrl.launch.staged import STATE, Ended

    console = LastingConsole()
    if resume and output is None:
        raise ConfigError("--resume needs --output DIR, the folder of the run to go on with")
    if resume and output is not None:
        run = kind.resumed(output, seed=seed, steps=steps, fast=fast)
    else:
        settings = kind.choose(seed=1 if seed is None else seed, steps=steps, fast=fast)
        run = kind.new(output or default_output(kind.command), settings)
    code = 0
    try:
        run.run(console)
    except Ended as err:
        code = err.code
    except KeyboardInterrupt:
        code = 130
    except (ConfigError, InfrastructureError) as err:
        if not (run.folder / STATE).exists():  # refused before the first stage
            raise
        typer.secho(f"error: {err}", fg="red", err=True)
        code = 1 if isinstance(err, ConfigError) else EXIT_FAILED
    if code:
        folder = run.folder.relative_to(Path.cwd()) if run.folder.is_relative_to(Path.cwd()) else run.folder
        console.out("what is done is kept; to go on:", highlight=False)
        console.out(f"  verl-toolrl {kind.command} --output {shlex.quote(str(folder))} --resume", highlight=False)
    raise typer.Exit(code)
