"""The stages of a longer job as a live table: what is done, what goes on, how long it took, what came out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verl_toolrl.launch.progress import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["Board", "Line"]

_MARKS = {"waiting": "[dim]·[/]", "running": "[yellow]▶[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


@dataclass
class Line:
    """One stage."""

    title: str
    state: str = "waiting"
    """waiting, running, done or failed."""
    seconds: float = 0.0
    note: str = ""
    """What came out, or what is known so far."""
    begun: float = 0.0

    @property
    def time(self) -> str:
        """Seconds that it took, or takes so far."""
        seconds = time.monotonic() - self.begun if self.state == "running" else self.seconds
        return "" if self.state == "waiting" else duration(seconds)


class Board:
    """The table, redrawn on a terminal; elsewhere a line at the start and one at the end of each stage."""

    def __init__(self, console: Console, title: str, lines: dict[str, str]) -> None:
        self.console = console
        self.title = title
        self.lines = {name: Line(text) for name, text in lines.items()}

    def table(self) -> Table:
        """The table as it is now."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("")
        table.add_column("stage")
        table.add_column("time", justify="right")
        table.add_column("result", overflow="fold")
        for line in self.lines.values():
            table.add_row(_MARKS[line.state], line.title, line.time, escape(line.note))
        total = sum(
            time.monotonic() - line.begun if line.state == "running" else line.seconds for line in self.lines.values()
        )
        table.add_section()
        table.add_row("", "", duration(total), "")
        return table

    def frame(self, detail: RenderableType) -> RenderableType:
        """The table with what a stage draws itself under it."""
        from rich.console import Group

        return Group(self.table(), detail)

    def recall(self, name: str, seconds: float, note: str) -> None:
        """Show a stage that an earlier attempt has done."""
        line = self.lines[name]
        line.state, line.seconds, line.note = "done", seconds, note
        if not self.console.is_terminal:
            self.console.out(f"[{self._place(name)}] {line.title}: done before ({note})", highlight=False)

    @contextlib.contextmanager
    def stage(self, name: str, *, draws: bool = False) -> Iterator[Line]:
        """Run a stage inside; set `note` of what is yielded to say what came out.

        Args:
            name: The stage.
            draws: Whether the stage draws for itself, with `frame`.
        """
        from rich.live import Live

        line = self.lines[name]
        line.state, line.begun = "running", time.monotonic()
        live = self.console.is_terminal and not draws
        if not self.console.is_terminal:
            self.console.out(f"[{self._place(name)}] {line.title}", highlight=False)
        try:
            with Live(get_renderable=self.table, console=self.console, transient=True) if live else _nothing():
                yield line
            line.state = "done"
        except BaseException:
            line.state = "failed"
            raise
        finally:
            line.seconds = time.monotonic() - line.begun
            if not self.console.is_terminal:
                end = line.note if line.state == "done" else line.state
                self.console.out(f"[{self._place(name)}] {duration(line.seconds)}: {end}", highlight=False)

    def _place(self, name: str) -> str:
        return f"{list(self.lines).index(name) + 1}/{len(self.lines)}"


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
