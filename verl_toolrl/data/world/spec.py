"""What to make: sizes of the splits, form of the prompts, kinds of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from verl_toolrl.data.world.prompts import STYLES
from verl_toolrl.data.world.splits import DEFAULT_MIX, SPLITS
from verl_toolrl.data.world.tasks import Kind
from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.formats import get_dialect

__all__ = ["FORMATS", "WorldSpec"]

FORMATS = ("toolrl", "native")
"""ToolRL's prompt with the tools in it, or plain chat messages with the tools in a column of their own."""


@dataclass(frozen=True)
class WorldSpec:
    """What to make. The same spec and tool set give the same rows."""

    toolset: str = "quickstart"
    """A tool set as `Toolbox.load` takes it."""
    seed: int = 1
    train: int = 512
    """Rows to train on by RL."""
    sft: int = 64
    """Rows for a supervised warm-up."""
    seen: int = 256
    """Held-out rows with calls of tools that training shows."""
    unseen: int = 64
    """Held-out rows with calls of tools that training does not show."""
    no_tool: int = 64
    """Held-out rows where no call is right."""
    format: str = "toolrl"
    style: str = "short"
    """Of ToolRL's prompt."""
    dialect: str = "hermes"
    """In which the supervised rows of the native format write calls."""
    tools: tuple[int, int] = (2, 3)
    """Least and most tools on a list."""
    lists: int | None = None
    """Lists that the held-out rows share; None for one a row. An engine that caches prefixes reads each list once, so
    that measuring is cheaper; rows on one list are no independent evidence. As many again hold the unseen tools. Rows
    to train on have a list each in any case: with few lists a model can learn which tool goes with which list."""
    max_calls: int = 2
    """Calls at most in a row with parallel calls."""
    mix: Mapping[Kind, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    """Shares of the kinds."""
    unseen_tools: tuple[str, ...] | None = None
    """Names; None for about a fifth, chosen by the seed."""
    min_prompt: int = 0
    """Least length of a prompt: earlier turns of the dialogue are put in front until it is reached. In tokens if
    `make_world` gets a tokenizer, else in words."""

    def __post_init__(self) -> None:
        for name in (*SPLITS, "min_prompt"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, found {getattr(self, name)}")
        for name, known in (("format", FORMATS), ("style", STYLES)):
            if getattr(self, name) not in known:
                hint = nearest(getattr(self, name), known)
                raise ConfigError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}{hint}")
        get_dialect(self.dialect)
        least, most = self.tools
        if not 1 <= least <= most:
            raise ConfigError(f"tools on a list: wanted 1 <= least <= most, found {least} to {most}")
        if self.lists is not None and self.lists < 1:
            raise ConfigError(f"lists must be at least 1, found {self.lists}")
        if self.max_calls < 2:
            raise ConfigError(f"max_calls must be at least 2, found {self.max_calls}")
