"""The console of commands that start runs: a run must not depend on who reads what is drawn of it."""

from __future__ import annotations

import os

from rich.console import Console

__all__ = ["LastingConsole"]


class LastingConsole(Console):
    """Draws nothing any more once its reader is gone (`... | tee log`, Ctrl-C), where Rich ends the program."""

    def on_broken_pipe(self) -> None:
        """Be quiet from now on."""
        self.quiet = True
        # What is still buffered would fail again when Python flushes its streams at exit (exit code 120).
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
