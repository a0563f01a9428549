"""`verl-toolrl evaluate`: measure a checkpoint or a server on rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_toolrl.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from rich.console import Console

    from verl_toolrl.evaluation.result import Measurement

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_ENDPOINT",
            help="Folder of a model, checkpoint or run, a name such as Qwen/Qwen2.5-3B-Instruct, or the address of a "
            "server with OpenAI's API, such as http://localhost:8000/v1.",
        ),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE.parquet...", help="Rows in verl's RL schema.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The result file, with every response and its scores.")
    ] = Path("evaluation.json"),
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Another result file: show differences to it, with intervals.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a response.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first N rows of each set.")] = None,
    dialect: Annotated[
        str, typer.Option(help="How the model writes calls: toolrl, hermes, llama3_json, qwen3_coder, ...")
    ] = "toolrl",
    resume: Annotated[bool, typer.Option("--resume", help="Keep the answers that --output holds.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap; decoding is greedy.")] = 0,
    name: Annotated[
        str, typer.Option("--model", help="Name of the model at the endpoint, where it serves several.")
    ] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at an endpoint.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an endpoint has for one response.")] = 120.0,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
) -> None:
    """Measure a model on rows in ToolRL's released scorer: format, correctness, exact match.

    Every row is answered once, greedily. Correctness, in [-3, 3], is the mean over the rows whose reference has calls.
    Exact match (acc) asks for all calls and no other; where no call is wanted, for none. A set is what shares a
    data_source.

    Rows with a column `tools` are asked through the model's own template for tools; --dialect says how it then writes.

    A folder is loaded by vLLM (on a GPU, or on the CPU with the CPU build), a run folder means its newest checkpoint. A
    measurement that was stopped leaves the rows it has in --output; --resume goes on.

    Example: verl-toolrl evaluate outputs/quickstart/model held-out.parquet --compare before.json
    """
    import os

    from rich.console import Console

    from verl_toolrl.evaluation.endpoint import Endpoint
    from verl_toolrl.evaluation.paired import compare as compare_with
    from verl_toolrl.evaluation.result import load_measurement
    from verl_toolrl.evaluation.tables import difference_table, score_table
    from verl_toolrl.launch.measurement import is_endpoint, measure_model

    console = Console()
    if output.exists() and not resume:
        raise ConfigError(f"{output} exists: give another --output, or --resume to go on with that measurement")
    other = load_measurement(compare) if compare else None
    if name and not is_endpoint(model):
        raise ConfigError(f"--model names a model at an endpoint, and {model} is none (http://... is wanted)")
    endpoint = Endpoint(model, name, os.environ.get(api_key_env, ""), concurrency, timeout)
    with _Bar(console) as bar:
        try:
            found = measure_model(
                model,
                files,
                output,
                max_tokens=max_tokens,
                dialect=dialect,
                limit=limit,
                resume=resume,
                endpoint=endpoint if is_endpoint(model) else None,
                progress=bar.show,
            )
        except (InfrastructureError, KeyboardInterrupt) as err:
            bar.stop()
            _say_what_is_kept(output, console)
            if isinstance(err, KeyboardInterrupt):
                raise typer.Exit(130) from err
            typer.secho(f"error: {err}", fg="red", err=True)
            raise typer.Exit(3) from err
    console.print(score_table(found))
    if other is not None:
        title = f"against {other.model} ({compare})"
        console.print(difference_table(compare_with(other, found, seed=seed), title=title))
    console.out(f"{len(found.rows)} rows in {found.seconds:.0f} s: {output}", highlight=False)


class _Bar:
    """Progress on a terminal; elsewhere a line every tenth of the rows."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("loading", total=None)
        self._told = 0

    def __enter__(self) -> _Bar:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        self._progress.update(
            self._task, completed=done, total=total if done else None, description="rows" if done else "loading"
        )
        if not self._console.is_terminal and done * 10 // total > self._told:
            self._told = done * 10 // total
            self._console.out(f"{done} of {total} rows", highlight=False)


def _say_what_is_kept(output: Path, console: Console) -> None:
    from verl_toolrl.evaluation.result import load_measurement

    if not output.exists():
        console.out("no row was answered: nothing was written", highlight=False)
        return
    kept: Measurement = load_measurement(output)
    console.out(f"kept {len(kept.rows)} rows in {output}; --resume goes on with them", highlight=False)
