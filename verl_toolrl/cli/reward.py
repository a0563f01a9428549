"""`verl-toolrl reward ...`: look at rewards, and attack them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_toolrl.cli.options import parse_settings

if TYPE_CHECKING:
    from verl_toolrl.rewards.lint import LintReport

__all__ = ["app"]

app = typer.Typer(help="List rewards, and attack them.", no_args_is_help=True)


@app.command("list")
def list_rewards() -> None:
    """List the registered rewards."""
    from verl_toolrl.rewards import known_rewards

    typer.echo("\n".join(known_rewards()))


@app.command()
def lint(
    rows: Annotated[
        Path | None, typer.Argument(help="Rows to attack with (.parquet, .jsonl, .json); default: our own.")
    ] = None,
    reward: Annotated[str, typer.Option(help="A registered reward, or my_file.py:name.")] = "toolrl",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the reward, key=value; again for more.")
    ] = None,
    dialect: Annotated[str | None, typer.Option(help="How the model writes calls; default: the reward's own.")] = None,
    max_seconds: Annotated[float, typer.Option(min=0.0, help="Time that one response of a megabyte may take.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report as JSON.")] = False,
) -> None:
    """Attack a reward and report what it should not do, with the smallest example of each fault.

    Junk and duplicate calls, echoes, tags in strings, order, dropped and added arguments, changed types, truncated,
    huge and deep texts, unicode, empty text. Exits with 1 if anything was found.

    Example: verl-toolrl reward lint --reward toolrl --set mode=released
    """
    from verl_toolrl.rewards import make_reward
    from verl_toolrl.rewards.lint import SAMPLE, Row, lint_reward
    from verl_toolrl.rewards.trajectory import need_response_reward

    configured = make_reward(reward, **parse_settings(settings or []))
    need_response_reward(configured, reward)
    given = SAMPLE if rows is None else [Row(*row) for row in _read(rows)]
    report = lint_reward(configured, list(given)[:limit], dialect=dialect, max_seconds=max_seconds)
    if as_json:
        import dataclasses
        import json

        values = {**dataclasses.asdict(report), "findings": [dataclasses.asdict(f) for f in report.findings.values()]}
        typer.echo(json.dumps(values, indent=1, default=str))
    else:
        _print(report, " ".join([reward, *(settings or [])]))
    if not report.clean or report.unusable:
        raise typer.Exit(1)


def _read(path: Path) -> list[tuple[object, object]]:
    """Ground truth and tools of each row: rows in verl's schema, or objects with `ground_truth`."""
    from verl_toolrl.data.rows import read_rows
    from verl_toolrl.formats.tool_list import row_tools
    from verl_toolrl.schema import validate_row

    found: list[tuple[object, object]] = []
    for index, row in enumerate(read_rows(path)):
        if isinstance(row, dict) and "ground_truth" in row:
            found.append((row["ground_truth"], row.get("tools")))
            continue
        validate_row(row, f"{path}: row {index}")
        found.append((row["reward_model"]["ground_truth"], list(row_tools(row, f"{path}: row {index}"))))
    return found


def _print(report: LintReport, title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if report.findings:
        table = Table(box=box.SIMPLE_HEAD, show_lines=True, title=escape(title), title_justify="left")
        for column in ("fault", "attack", "found", "times"):
            table.add_column(column)
        table.add_column("smallest example", overflow="fold", ratio=1)
        for finding in sorted(report.findings.values(), key=lambda finding: (finding.kind != "pays", finding.kind)):
            example = (
                finding.response
                if len(finding.response) <= 240
                else f"{finding.response[:200]} … {len(finding.response):,} characters"
            )
            shown = escape(example.encode("utf-8", "backslashreplace").decode())
            table.add_row(finding.kind, escape(finding.attack), escape(finding.detail), str(finding.count), shown)
        console.print(table)
    for reason in report.unusable[:5]:
        console.print(f"[yellow]row not used:[/yellow] {escape(reason)}")
    color = "green" if report.clean else "red"
    console.print(
        f"[{color}]{len(report.findings)} faults[/{color}] in {report.trials:,} trials over {report.rows} rows; "
        f"slowest response {report.slowest_ms:.0f} ms"
    )
