"""Names the inline tool that blocks the event loop, while it does.

A blocked loop stops every trajectory of the worker, and nothing in the loop can say so. A thread asks the loop for a
sign of life and, where none comes, looks at what the loop's thread is doing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from verl_toolrl.toolbox.flight import Runtime

__all__ = ["Watchdog"]

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches one runtime.

    Args:
        runtime: Whose loop is watched; must be created on the loop's thread.
        threshold: Seconds without a sign of life that count as blocked.
        report: Called from the watchdog's thread with the tool's name, once a block.
    """

    def __init__(self, runtime: Runtime, threshold: float, report: Callable[[str], None]) -> None:
        self._runtime, self._threshold, self._report = runtime, threshold, report
        self._loop_thread = threading.get_ident()
        self._stop, self._alive = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="toolbox-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._alive.set()
        self._thread.join(1.0)

    def _watch(self) -> None:
        while not self._stop.wait(self._threshold / 2):
            self._alive.clear()
            try:
                self._runtime.loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:  # the loop was closed without us
                return
            if self._alive.wait(self._threshold) or self._stop.is_set():
                continue
            started = time.monotonic() - self._threshold
            name = self._named()
            self._alive.wait()
            if name is not None:
                logger.warning(f"tool {name!r} blocked the event loop for {time.monotonic() - started:.1f} s")

    def _named(self) -> str | None:
        """Report the tool that blocks, if it is one; the trainer's own code is not ours to judge."""
        name = self._runtime.inline
        if name is None:
            task = asyncio.current_task(self._runtime.loop)
            name = self._runtime.tasks.get(task) if task is not None else None
        if name is None:
            return None
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)[-4:]) if frame is not None else ""
        logger.warning(
            f"tool {name!r} blocks the event loop: every trajectory of this process waits for it. "
            f"Give it isolation 'thread' or 'process', or await inside it. It is here:\n{stack}"
        )
        self._report(name)
        return name
