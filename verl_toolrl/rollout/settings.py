"""What a recipe, and what a row, says about rollouts with tools.

    actor_rollout_ref:
      rollout:
        agent: {default_agent_loop: toolrl_native}
        custom:
          toolrl:
            toolbox: my_tools.yaml          # as for Toolbox.load
            steps: 8

A row may choose among the tools, set the initial state and change the budget of its trajectory, as JSON text (Parquet
cannot hold objects that differ) or as an object:

    "extra_info": {"session": "{\\"tools\\": [\\"look_up\\"], \\"state\\": {\\"Inventory\\": {\\"stock\\": {...}}}}"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError, nearest
from verl_toolrl.formats import get_dialect
from verl_toolrl.rollout.loop import TurnLimits
from verl_toolrl.schema import as_list
from verl_toolrl.toolbox import Budget, Toolbox

__all__ = ["RolloutSettings", "RowSession", "row_session"]

WHERE = "actor_rollout_ref.rollout.custom.toolrl"
_SESSION_KEYS = ("tools", "state", "budget")


@dataclass(frozen=True)
class RolloutSettings:
    """The block `actor_rollout_ref.rollout.custom.toolrl` of a recipe."""

    toolbox: str | None = None
    """Tool set: a YAML file, the name of a ready-made one, or a module path. None: verl's own `tool_config_path` and
    `function_tool_path` name the tools."""
    dialect: str | None = None
    """How the model writes calls under `toolrl_native`, where it is not `hermes`; `llama3_json` for Llama 3. The other
    forms ask for a text of their own and read that, whatever stands here."""
    budget: Mapping[str, Any] | None = None
    """Calls, steps, tokens and seconds of a trajectory's tools, instead of what the tool set says."""
    steps: int | None = 16
    """Answers of the model in one trajectory."""
    turn_tokens: int | None = None
    """Tokens of one answer; it ends there, and the trajectory with it."""
    tool_tokens: int | None = None
    """Tokens of one tool's answer that the model gets to read, beside the tool's own limit."""
    stop_on_malformed: bool = False
    """Whether a call that cannot be read ends the trajectory; else the model is told and goes on."""
    resumes: int = 8
    """How often a generation that the engine gave up is taken up again before the session counts as lost."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end an answer, beside those of tokenizer and template."""
    audit_every: int = 64
    """One trajectory in so many is compared with a rendering of the whole conversation; 0 for none."""

    strict_template: bool = True
    """Whether a chat template that rewrites earlier turns is refused, and one that writes calls in another dialect than
    the one in which they are read. False trains with it although a model that is served with the template would see
    other contexts; what the engine saw is what is trained on either way."""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any] | None) -> RolloutSettings:
        """Read the block.

        Raises:
            ConfigError: If a key is unknown or a value out of range; the text names the key.
        """
        names = [each.name for each in fields(cls)]
        for key in data or {}:
            if key not in names:
                raise ConfigError(f"{WHERE}.{key}: unknown{nearest(key, names)}; known: {', '.join(names)}")
        settings = cls(**(data or {}))
        settings.limits(response_tokens=1)
        if settings.dialect is not None:
            get_dialect(settings.dialect)
        if settings.budget is not None:
            Budget.from_mapping(settings.budget)
        if isinstance(settings.audit_every, bool) or not isinstance(settings.audit_every, int):
            raise ConfigError(f"{WHERE}.audit_every must be a whole number, found {settings.audit_every!r}")
        if not all(isinstance(token, int) for token in settings.stop_token_ids):
            raise ConfigError(f"{WHERE}.stop_token_ids must be whole numbers, found {settings.stop_token_ids!r}")
        return settings

    def limits(self, **of_the_run: Any) -> TurnLimits:
        """Return the limits of a trajectory: ours, and those of the run by keyword."""
        return TurnLimits(
            turn_tokens=self.turn_tokens,
            tool_tokens=self.tool_tokens,
            steps=self.steps,
            stop_on_malformed=self.stop_on_malformed,
            resumes=self.resumes,
            **of_the_run,
        )


@dataclass(frozen=True)
class RowSession:
    """What one row says about its session; the arguments of `Toolbox.session`."""

    tools: tuple[str, ...] | None = None
    """Names of the tools; None for all, empty for none."""
    state: Mapping[str, Mapping[str, Any]] | None = None
    budget: Budget | None = None

    def check(self, box: Toolbox) -> None:
        """Check it against the tools that there are.

        Raises:
            UnknownNameError: If a tool or a state is not in the toolbox.
        """
        if box.has_sources and not box.tools:
            return  # known only once a server answers; the session then refuses what it does not have
        for name in self.tools or ():
            if name not in box.tools and not box.has_sources:
                raise UnknownNameError("tool", name, box.tools)
        for name in self.state or {}:
            if name not in box.states and not box.has_sources:
                raise UnknownNameError("tool state", name, box.states)


def row_session(extra_info: Any, budget: Budget | None = None) -> RowSession:
    """Read `extra_info.session`, and verl's `extra_info.tool_selection` where that is missing.

    Args:
        extra_info: Of the row; None and missing keys mean: all tools, no state. An empty list of `session.tools` means
            no tool, one of `tool_selection` all of them, as in verl.
        budget: The recipe's; a row's own values replace its.

    Raises:
        DatasetError: If it cannot be read.
    """
    extra = extra_info if isinstance(extra_info, Mapping) else {}
    given = extra.get("session")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as err:
            raise DatasetError(f"extra_info.session is no JSON: {err}") from err
    if given is not None and not isinstance(given, Mapping):
        raise DatasetError(f"extra_info.session must be an object or its JSON text, found {type(given).__name__}")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    for key in given:
        if key not in _SESSION_KEYS:
            raise DatasetError(
                f"extra_info.session: unknown key {key!r}{nearest(key, _SESSION_KEYS)}; "
                f"known: {', '.join(_SESSION_KEYS)}"
            )
    names = as_list(given["tools"]) if "tools" in given else as_list(extra.get("tool_selection")) or None
    if ("tools" in given and names is None) or not all(isinstance(name, str) for name in names or ()):
        raise DatasetError(f"extra_info.session.tools must be a list of names, found {given.get('tools', names)!r}")
    state = given.get("state")  # Parquet fills the keys of other rows with None
    if isinstance(state, Mapping):
        state = {key: value for key, value in state.items() if value is not None}
    if state is not None and not (
        isinstance(state, Mapping) and all(isinstance(each, Mapping) for each in state.values())
    ):
        raise DatasetError(f"extra_info.session.state must map states to keywords, found {state!r}")
    if "budget" in given:
        try:
            budget = Budget.from_mapping({**(vars(budget) if budget else {}), **given["budget"]})
        except (ConfigError, TypeError) as err:
            raise DatasetError(f"extra_info.session.budget: {err}") from err
    return RowSession(None if names is None else tuple(names), state, budget)
