"""Live progress of a run: step, reward and its components, seconds a step, tokens a second, time left.

On a terminal a panel that is redrawn, elsewhere a line a step. The figures are verl's own metrics; nothing is computed
here but the time left (seconds of the last steps times the steps that remain).
"""

from __future__ import annotations

import math
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from verl_toolrl.integrations.say import SAID
from verl_toolrl.launch.failure import clean_line
from verl_toolrl.launch.metrics import Metrics, Tail, parse_console_line, parse_metrics_line, total_steps_in

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Progress", "duration"]

_PHASES = (
    # (text in the log, what is going on from then on); in the order of a start
    (re.compile(r"Started a local Ray instance|Connected to Ray cluster"), "loading the data"),
    (re.compile(r"Total training steps"), "loading the model"),
    (re.compile(r"Loading weights: 100%"), "starting the engine"),
    (re.compile(r"Training Progress:"), "first step"),
)
_STEP_KEYS = {"training/global_step", "train/loss"}  # of verl's RL and SFT trainers
_BARS = "▁▂▃▄▅▆▇█"
_RECENT = 5  # steps over which seconds a step are averaged


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sparkline(values: list[float], width: int = 24) -> str:
    """The last `width` values as a row of bars, scaled to their own range."""
    values = [value for value in values if math.isfinite(value)][-width:]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in values)


@dataclass
class Progress:
    """What is known of a run so far; `poll` reads what is new in its metrics file and log."""

    metrics_file: Path
    log: Path
    title: str
    total_steps: int | None = None
    records: dict[int, Metrics] = field(default_factory=dict)
    """Metrics by step."""

    phase: str = "starting verl"
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._metrics, self._log = Tail(self.metrics_file), Tail(self.log)
        self.last_line = ""
        self._said: list[str] = []

    def recall(self, metrics_file: Path, *, up_to: int) -> None:
        """Read the steps of an earlier attempt, up to the checkpoint that this one goes on from."""
        for line in Tail(metrics_file).lines():
            record = parse_metrics_line(line)
            if record is not None and record[0] <= up_to:
                self._add(record)

    def poll(self) -> tuple[list[int], list[str]]:
        """Read what is new.

        Returns:
            (training steps that are new, log lines that are new).
        """
        before = set(self.steps)
        for line in self._metrics.lines():
            self._add(parse_metrics_line(line))
        lines = list(self._log.lines())
        for line in lines:
            self._read_log_line(line)
        return [step for step in self.steps if step not in before], lines

    def _read_log_line(self, line: str) -> None:
        text = clean_line(line)
        if text.strip() and not text.startswith((" ", "'", "{")):
            self.last_line = text
        self.total_steps = total_steps_in(text) or self.total_steps
        if text.startswith(SAID):
            self._said.append(text.removeprefix(SAID))
        for sign, phase in _PHASES:
            if sign.search(text) and not self.steps:
                self.phase = phase
        # The console line is the fallback, where the metrics file cannot be seen.
        record = parse_console_line(text)
        if record is not None and record[0] not in self.records:
            self._add(record)

    def take_said(self) -> list[str]:
        """Return what this package has to say in the log since the last time: prompts left out, tools not shown, ..."""
        said, self._said = self._said, []
        return said

    def _add(self, record: tuple[int, Metrics] | None) -> None:
        if record is not None:
            self.records.setdefault(record[0], {}).update(record[1])

    @property
    def steps(self) -> list[int]:
        """Training steps with metrics; validation before the first step is not one."""
        return sorted(step for step, metrics in self.records.items() if metrics.keys() & _STEP_KEYS)

    def series(self, key: str) -> list[float]:
        """Values of a metric over the training steps that have it."""
        return [self.records[step][key] for step in self.steps if key in self.records[step]]

    @property
    def components(self) -> list[str]:
        """Names of the reward's components, as verl-toolrl's trainers log them (`reward/<name>/mean`)."""
        newest = self.records[self.steps[-1]] if self.steps else {}
        names = [key.split("/")[1] for key in newest if re.fullmatch(r"reward/[^/]+/mean", key)]
        return [name for name in names if name != "score"]  # their sum, shown as the reward

    @property
    def seconds_a_step(self) -> float | None:
        """Mean of the last steps, validation and checkpoints in them spread over all steps so far."""
        steps = self.series("timing_s/step")
        if not steps:
            return None
        testing = sum(self.series("timing_s/testing")) / len(steps)
        return statistics.fmean(steps[-_RECENT:]) + testing

    @property
    def seconds_left(self) -> float | None:
        """Time until the last step; None before the first step or where the last step is not known."""
        pace = self.seconds_a_step
        if pace is None or self.total_steps is None:
            return None
        return pace * max(0, self.total_steps - self.steps[-1])

    @property
    def validation(self) -> tuple[int, Metrics] | None:
        """Newest validation: (step, `val-core/...` metrics)."""
        for step in sorted(self.records, reverse=True):
            core = {key: value for key, value in self.records[step].items() if key.startswith("val-core/")}
            if core:
                return step, core
        return None

    def line(self, step: int) -> str:
        """One step in one line."""
        metrics = self.records[step]
        parts = [f"step {step}" + (f"/{self.total_steps}" if self.total_steps else "")]
        if "critic/score/mean" in metrics:
            inner = ", ".join(
                f"{name} {metrics[f'reward/{name}/mean']:.3g}"
                for name in self.components
                if f"reward/{name}/mean" in metrics
            )
            parts.append(f"reward {metrics['critic/score/mean']:.3f}" + (f" ({inner})" if inner else ""))
        if "train/loss" in metrics:
            parts.append(f"loss {metrics['train/loss']:.3f}")
        if "timing_s/step" in metrics:
            parts.append(f"{metrics['timing_s/step']:.1f} s")
        if "perf/throughput" in metrics:
            parts.append(f"{metrics['perf/throughput']:.0f} tokens/s")
        if self.seconds_left:
            parts.append(f"{duration(self.seconds_left)} left")
        return "  ".join(parts)

    def summary(self) -> str:
        """The run in one line: `16 steps in 5 min 20 s, reward -1.200 -> 0.800`."""
        text = f"{len(self.steps)} steps in {duration(time.monotonic() - self.begun)}"
        rewards = self.series("critic/score/mean")
        return f"{text}, reward {rewards[0]:.3f} -> {rewards[-1]:.3f}" if rewards else text

    def panel(self) -> RenderableType:
        """The run as a panel for a terminal."""
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid()
        elapsed = duration(time.monotonic() - self.begun)
        if self.steps:
            newest = self.steps[-1]
            rows.add_row(ProgressBar(total=self.total_steps or newest, completed=newest, width=60))
            rows.add_row(self._facts(elapsed))
            rows.add_row(self._course())
        else:
            rows.add_row(f"{self.phase} ... ({elapsed})")
        if self.validation is not None:
            step, core = self.validation
            scores = ", ".join(f"{key.removeprefix('val-core/')} {value:.3f}" for key, value in core.items())
            rows.add_row(f"validation at step {step}: {scores}")
        rows.add_row(Text(self.last_line, style="dim", no_wrap=True, overflow="ellipsis"))
        return Panel(rows, title=self.title)

    def _facts(self, elapsed: str) -> str:
        throughput = self.series("perf/throughput")
        facts = [f"step {self.steps[-1]}" + (f" of {self.total_steps}" if self.total_steps else "")]
        if self.seconds_a_step is not None:
            facts.append(f"{self.seconds_a_step:.1f} s a step")
        if throughput:
            facts.append(f"{throughput[-1]:.0f} tokens/s")
        facts.append(f"{elapsed} so far")
        if self.seconds_left is not None:
            facts.append(f"{duration(self.seconds_left)} left")
        return "  ".join(facts)

    def _course(self) -> RenderableType:
        """Reward and components: newest, first and highest value, and a small curve."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("", "now", "first", "highest", "course"):
            table.add_column(heading, justify="left" if heading in ("", "course") else "right")
        for name, key in [
            ("loss", "train/loss"),
            ("reward", "critic/score/mean"),
            *((name, f"reward/{name}/mean") for name in self.components),
        ]:
            values = self.series(key)
            if values:
                table.add_row(name, *(f"{v:.3f}" for v in (values[-1], values[0], max(values))), sparkline(values))
        return table
