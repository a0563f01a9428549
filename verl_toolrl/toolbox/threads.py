"""Daemon threads for tools of isolation `thread`.

`concurrent.futures` joins its threads when the interpreter ends and keeps a place for each that hangs. A tool that
hangs must cost neither: here a thread that is given up is replaced, and it ends when its tool returns or with the
process. A thread cannot be killed; who needs that takes isolation `process`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Job", "Threads"]


class Job:
    """One piece of work. `done(result, error)` is called from the thread unless the job was abandoned before."""

    __slots__ = ("_done", "_lock", "_pool", "_state", "_work")

    def __init__(
        self, pool: Threads, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        self._pool, self._work, self._done = pool, work, done
        self._state, self._lock = "queued", threading.Lock()

    def _step(self, *, expected: str, to: str) -> bool:
        with self._lock:
            if self._state != expected:
                return False
            self._state = to
            return True

    def run(self) -> bool:
        """Do the work, in a thread; False if the job was abandoned while it ran, so that its thread has a successor."""
        if not self._step(expected="queued", to="running"):
            return True
        result, error = None, None
        try:
            result = self._work()
        except BaseException as exc:  # a thread must report every end, also SystemExit
            error = exc
        if not self._step(expected="running", to="over"):
            return False
        self._done(result, error)
        return True

    def abandon(self) -> bool:
        """Wait for the job no longer; False if it has just ended by itself and will be reported."""
        if self._step(expected="queued", to="over"):
            return True
        if self._step(expected="running", to="over"):
            self._pool._replace()
            return True
        return False


class Threads:
    """A pool that grows to `size` threads as work comes in.

    Args:
        size: Threads at most, those given up not counted.
        hanging_limit: Given-up threads still running at which no further work is taken.
    """

    def __init__(self, size: int, hanging_limit: int = 256) -> None:
        self._size, self._hanging_limit = size, hanging_limit
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._alive = self._free = 0
        self.hanging = 0
        """Threads that were given up and still run."""
        self._closed = False

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> Job | None:
        """Queue `work`; None where too many threads hang or the pool is closed."""
        with self._lock:
            if self._closed or self.hanging >= self._hanging_limit:
                return None
            self._free -= 1  # negative: more jobs than threads that wait for one
            if self._free < 0 and self._alive < self._size:
                self._start()
        job = Job(self, work, done)
        self._jobs.put(job)
        return job

    def _start(self) -> None:
        self._alive += 1
        self._free += 1
        thread = threading.Thread(target=self._serve, name="toolbox", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _replace(self) -> None:
        with self._lock:
            self.hanging += 1
            self._alive -= 1
            if self._free < 0 and not self._closed:
                self._start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.run():
                with self._lock:
                    self.hanging -= 1
                break
            del job
            with self._lock:
                self._free += 1
        with self._lock:
            self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """End all threads that do not hang, and wait for them up to a second."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(1.0 if self.hanging == 0 else 0.02)
