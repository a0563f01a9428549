"""`verl-toolrl data ...`: make and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_toolrl.cli.data_convert import convert, rlla
from verl_toolrl.cli.data_make import make
from verl_toolrl.cli.options import token_counter
from verl_toolrl.errors import ConfigError

if TYPE_CHECKING:
    from verl_toolrl.data.check import CheckReport

__all__ = ["app"]

app = typer.Typer(help="Make and check data sets.", no_args_is_help=True)
app.command("make")(make)
app.command("rlla")(rlla)
app.command("convert")(convert)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help=".parquet, .jsonl or .json; several files are taken as splits.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer (folder or name) to measure prompts with, chat template included.")
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Report prompts with more tokens.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows to show for each finding.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Write the whole report as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings, too.")] = False,
) -> None:
    """Check rows before a run.

    Looks at the form of rows, at ground truths that cannot be read or do not earn the maximum against themselves, at
    calls that break their tool's schema, at duplicates, at prompts that stand in several files, and at the length of
    prompts. Exits with 1 if a run could not use some row.

    Example: verl-toolrl data check train.parquet test.parquet --tokenizer Qwen/Qwen2.5-3B-Instruct --max-prompt-length
        2048
    """
    from verl_toolrl.data.check import check_rows
    from verl_toolrl.data.rows import read_rows

    if max_prompt_length is not None and tokenizer is None:
        raise ConfigError("--max-prompt-length needs --tokenizer")
    count_tokens = token_counter(tokenizer) if tokenizer else None
    rows = {str(file): read_rows(file) for file in files}
    reports = []
    for index, (name, own) in enumerate(rows.items()):
        # Each pair of files once: the later one names the earlier.
        earlier = {other: rows[other] for other in list(rows)[:index]}
        reports.append(
            check_rows(own, name, others=earlier, count_tokens=count_tokens, max_prompt_length=max_prompt_length)
        )
    if as_json:
        import dataclasses
        import json

        typer.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=1))
    else:
        for report in reports:
            _print(report, examples)
    if any(report.errors or (strict and report.warnings) for report in reports):
        raise typer.Exit(1)


def _print(report: CheckReport, examples: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title=f"{escape(report.name)}: {report.rows} rows", title_justify="left")
    table.add_column("check")
    table.add_column("rows", justify="right")
    table.add_column("examples", overflow="fold")
    for finding in report.findings:
        color = "green" if not finding.rows else "red" if finding.severity == "error" else "yellow"
        shown = [f"{row}: {escape(reason[:100])}" for row, reason in finding.rows[:examples]]
        number = len({row for row, _ in finding.rows})
        table.add_row(finding.check, f"[{color}]{number}[/{color}]", "\n".join(shown))
    console.print(table)
    if report.calls:
        console.print("calls a row: " + ", ".join(f"{calls}: {rows} rows" for calls, rows in report.calls.items()))
    if report.prompt_tokens:
        tokens = ", ".join(f"{name} {value:.0f}" for name, value in report.prompt_tokens.items())
        console.print(f"prompt tokens: {tokens}")
    console.print(f"{report.errors} rows with errors, {report.warnings} rows with warnings\n")
