"""The findings of `verl-toolrl doctor`. Plain values: `dataclasses.asdict` gives what `--json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Engine", "Finding", "Machine", "Package", "Platform", "Plugin", "Registered", "Report", "Severity"]

Severity = Literal["error", "warning", "note"]
"""An `error` means that training would not start."""


@dataclass(frozen=True)
class Finding:
    """Something a person should know."""

    severity: Severity
    what: str
    remedy: str = ""
    details: str = ""
    """A traceback, where there is one."""


@dataclass(frozen=True)
class Package:
    """An installed distribution, or one that is missing."""

    name: str
    version: str | None
    wanted: str
    """Every bound that holds for it, with who sets it; an empty text when nobody does."""
    fits: bool


@dataclass(frozen=True)
class Platform:
    """What verl runs on."""

    name: str
    """verl's name: cpu, nvidia, amd, huawei, ..."""
    chosen_by: str
    accelerators: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """An inference engine that is installed."""

    name: str
    """As in `actor_rollout_ref.rollout.name`."""
    distribution: str
    version: str
    usable: bool
    says: str
    """The device that it found, or why it cannot be used."""


@dataclass(frozen=True)
class Plugin:
    """An entry point that verl or vLLM loads by itself."""

    group: str
    name: str
    module: str
    distribution: str
    error: str = ""
    """The traceback of its import. verl hides it at level DEBUG and goes on without the plugin."""


@dataclass(frozen=True)
class Registered:
    """A name that a recipe may use, and the module that registered it."""

    kind: str
    name: str
    module: str


@dataclass(frozen=True)
class Machine:
    """Gigabytes are 10**9 bytes."""

    cores: int
    memory_gb: float
    memory_available_gb: float
    shared_memory_free_gb: float
    disk_free_gb: dict[str, float]
    """Folder -> free: where runs are written, and where Ray keeps its session."""


@dataclass
class Report:
    """Everything that was looked at."""

    version: str
    python: str
    machine: Machine
    packages: list[Package] = field(default_factory=list)
    platform: Platform | None = None
    engines: list[Engine] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    registered: list[Registered] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training would start."""
        return not any(finding.severity == "error" for finding in self.findings)
