"""Our multi-turn loop as agent loops of verl: `toolrl_dialogue`, `toolrl_native` and `toolrl_react`.

    actor_rollout_ref:
      rollout:
        agent: {default_agent_loop: toolrl_native}     # or the column `agent_name` of a row
        custom: {toolrl: {toolbox: my_tools.yaml}}     # see rollout/settings.py

verl makes a new object for each trajectory; what all trajectories of a worker share (tools, template, settings) is made
once. A session lost to infrastructure returns an empty list of outputs, which verl takes for "no trajectory"; where all
sessions of a prompt are lost the last one raises, so that verl sees a failed prompt and can refill it. An author's
mistake that only a session shows is reported and raised: the trainer stops with its text.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, register

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.integrations.lost_sessions import Groups, report_lost, reported_errors
from verl_toolrl.integrations.rollout_engine import VerlEngine
from verl_toolrl.integrations.say import say_at_first
from verl_toolrl.integrations.session_seed import session_seed
from verl_toolrl.integrations.trajectory_output import TrajectoryOutput
from verl_toolrl.integrations.trajectory_travel import TRAJECTORY, dump_trajectory
from verl_toolrl.rollout import (
    DIALOGUES,
    ChatTokens,
    Dialogue,
    Rollout,
    SessionLost,
    TurnLimits,
    make_dialogue,
    run_dialogue,
)
from verl_toolrl.rollout.audit import audit
from verl_toolrl.rollout.settings import RolloutSettings, RowSession, row_session
from verl_toolrl.schema import as_list
from verl_toolrl.toolbox import Budget, Session, Toolbox

__all__ = [
    "DialogueLoop",
    "NativeLoop",
    "ReActLoop",
    "ToolRLLoop",
    "Workplace",
    "settings_from_config",
]


def settings_from_config(config: DictConfig) -> RolloutSettings:
    """Read `actor_rollout_ref.rollout.custom.toolrl` of the trainer's whole configuration.

    Raises:
        ConfigError: If a key is unknown or a value out of range.
    """
    custom = config.actor_rollout_ref.rollout.get("custom") or {}
    block = custom.get("toolrl") or {}
    if OmegaConf.is_config(block):
        block = OmegaConf.to_container(block, resolve=True)
    return RolloutSettings.from_mapping(block)


def context_tokens(rollout: DictConfig) -> int:
    """Return the tokens of prompt and response that the engine takes."""
    # SGLang keeps one token of the context for itself.
    return int(rollout.get("max_model_len") or rollout.prompt_length + rollout.response_length) - (
        rollout.name == "sglang"
    )


def toolbox_from_config(config: DictConfig, settings: RolloutSettings, tokenizer: Any) -> Toolbox:
    """Build the toolbox of a run: ours, or verl's own tools taken in.

    Raises:
        ToolRLError: If nothing names the tools, or what does is wrong.
    """
    if settings.toolbox is not None:
        return Toolbox.load(settings.toolbox, tokenizer=tokenizer)
    multi_turn = config.actor_rollout_ref.rollout.get("multi_turn") or {}
    paths = {key: multi_turn.get(key) for key in ("tool_config_path", "function_tool_path")}
    if not any(paths.values()):
        raise ConfigError(
            "no tools: set actor_rollout_ref.rollout.custom.toolrl.toolbox to a tool set (a YAML file, a module, or "
            "the name of a ready-made one), or verl's own rollout.multi_turn.tool_config_path"
        )
    from verl_toolrl.integrations.verl_tools import verl_tools

    return Toolbox(verl_tools(**paths), tokenizer=tokenizer, name="verl's tools")


@dataclass
class Workplace:
    """What all trajectories of one form share in a process."""

    settings: RolloutSettings
    dialogue: Dialogue
    chat: ChatTokens
    box: Toolbox
    budget: Budget | None
    limits: TurnLimits
    groups: Groups
    _schemas: dict[tuple[str, ...] | None, list[dict[str, Any]]] = field(default_factory=dict)

    def schemas(self, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
        """Return the schemas of these tools, made once; the toolbox is open."""
        if names not in self._schemas:
            self._schemas[names] = self.box.schemas(names)
        return self._schemas[names]

    def prompt(
        self, row: Mapping[str, Any], names: tuple[str, ...] | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Return the messages of a row of data as the model reads them, and the tools for the chat template."""
        schemas = self.schemas(names)
        messages = self.dialogue.messages([dict(message) for message in as_list(row["prompt"]) or ()], schemas)
        return messages, schemas if self.dialogue.tools_in_template else None

    def prompt_length(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of the prompt of a row, tools included."""
        messages, tools = self.prompt(row, row_session(row.get("extra_info"), self.budget).tools)
        return len(self.chat.prompt_ids(messages, tools=tools))

    @classmethod
    def of(cls, config: DictConfig, tokenizer: Any, form: str, *, box: Toolbox | None = None) -> Workplace:
        """Build it from the trainer's whole configuration.

        Raises:
            ToolRLError: If the settings, the tools or the chat template do not allow it.
        """
        settings = settings_from_config(config)
        rollout = config.actor_rollout_ref.rollout
        template_kwargs = config.data.get("apply_chat_template_kwargs") or {}
        chat = ChatTokens(tokenizer, template_kwargs=dict(template_kwargs), stop_ids=settings.stop_token_ids)
        return cls(
            settings=settings,
            # Where the prompt asks for a text of its own, it is that which is read; rows may choose among the forms.
            dialogue=make_dialogue(form, settings.dialect if DIALOGUES[form].tools_in_template else None),
            chat=chat,
            box=box or toolbox_from_config(config, settings, tokenizer),
            budget=None if settings.budget is None else Budget.from_mapping(settings.budget),
            limits=settings.limits(
                response_tokens=int(rollout.response_length),
                prompt_tokens=int(rollout.prompt_length),
                context_tokens=context_tokens(rollout),
            ),
            groups=Groups(),
        )


_workplaces: dict[tuple[int, int, str], tuple[Workplace, Any, Any]] = {}
_boxes: dict[tuple[int, int], Toolbox] = {}


def _workplace(config: DictConfig, tokenizer: Any, form: str) -> Workplace:
    """Return the workplace of this process, made at the first call. All forms share one toolbox, and so its limits."""
    key = (id(config), id(tokenizer), form)
    if key not in _workplaces:
        place = Workplace.of(config, tokenizer, form, box=_boxes.get(key[:2]))
        _boxes[key[:2]] = place.box
        _workplaces[key] = (place, config, tokenizer)  # both are held, so that their ids stay theirs
    return _workplaces[key][0]


class DialogueLoop(AgentLoopBase):
    """One trajectory; the subclasses say in which form."""

    form: str

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, **kwargs: Any) -> None:
        # Not through super().__init__: it builds verl's own continuation of templates anew for each trajectory, and
        # warns each time that it does not know Llama. Ours is made once.
        self.config = trainer_config.config
        self.rollout_config = self.config.actor_rollout_ref.rollout
        self.server_manager, self.tokenizer = server_manager, tokenizer

    @cached_property
    def place(self) -> Workplace:
        """What the trajectories of this process share; made in `run`, which reports a mistake that it shows."""
        return _workplace(self.config, self.tokenizer, self.form)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        """Run one trajectory.

        Args:
            sampling_params: Of the run; not changed.
            priority: Of vLLM's scheduler.
            **kwargs: Columns of the row, `uid`, `session_id` and `global_steps`.

        Returns:
            A `TrajectoryOutput`, or an empty list if the session was lost to infrastructure.

        Raises:
            InfrastructureError: If this was the last session of its prompt and all of them are lost.
            AuthorError: If the row, the recipe or a tool is wrong; the trainer is told and stops.
        """
        uid, number = str(kwargs.get("uid", "")), int(kwargs.get("session_id", 0))
        step = int(kwargs.get("global_steps", 0) or 0)
        async with reported_errors(kwargs):
            with self.place.groups.session(uid) as group:
                await asyncio.sleep(0)  # the other sessions of the prompt are counted before this one can end
                try:
                    return await self._run(sampling_params, priority, uid, number, step, kwargs)
                except InfrastructureError as err:  # of a dialogue, or of what is set up before and asked after it
                    say_at_first("lost session", f"session {uid}_{number} of step {step} is lost: {err}")
                    await report_lost(f"{uid}_{number}", str(err), step)
                    if group.all_lost_with_this_one():
                        raise InfrastructureError(f"all sessions of prompt {uid} are lost; the last: {err}") from err
                    return []

    async def _run(
        self,
        sampling_params: Mapping[str, Any],
        priority: int,
        uid: str,
        number: int,
        step: int,
        row: Mapping[str, Any],
    ) -> TrajectoryOutput:
        place = self.place
        extra_info = row.get("extra_info")
        extra_info = extra_info if isinstance(extra_info, Mapping) else {}
        wanted: RowSession = row_session(extra_info, place.budget)
        messages = [dict(message) for message in row["raw_prompt"]]
        engine = VerlEngine(
            self.server_manager,
            str(self.rollout_config.name),
            seed=session_seed(sampling_params, self.rollout_config, row),
            priority=priority,
        )
        name = f"{uid}_{number}"
        async with place.box.session(
            name, state=wanted.state, budget=wanted.budget, tools=wanted.tools, extra=dict(extra_info)
        ) as session:
            schemas = place.schemas(wanted.tools)
            rollout = await run_dialogue(
                engine=engine,
                chat=place.chat,
                dialogue=place.dialogue,
                session=session,
                messages=messages,
                limits=place.limits,
                sampling=sampling_params,
                request_id=name,
                schemas=schemas,
                extra=_extra(row, extra_info, step),
            )
            if place.box.states:
                rollout = await _with_final_state(rollout, session)
            problems = self._audit(name, rollout, schemas)
        return _output(rollout, engine, problems)

    def _audit(self, name: str, rollout: Rollout, schemas: list[dict[str, Any]]) -> int | None:
        every = self.place.settings.audit_every
        if not every or zlib.crc32(name.encode()) % every:
            return None
        strict = self.place.settings.strict_template
        problems = list(audit(rollout, self.place.chat, self.place.dialogue, schemas, against_template=strict))
        for problem in problems:
            say_at_first("audit", f"trajectory {name}: {problem}")
        return len(problems)


async def _with_final_state(rollout: Rollout, session: Session) -> Rollout:
    """Put what the states are now where rewards find it.

    Raises:
        SessionLost: If nobody knows: a reward that compares states would take that for the model's doing.
    """
    trajectory = rollout.trajectory
    try:
        state = await session.snapshot()
    except InfrastructureError as err:
        raise SessionLost(f"final state: {err}", trajectory) from err
    return replace(rollout, trajectory=replace(trajectory, extra={**trajectory.extra, "final_state": state}))


def _extra(row: Mapping[str, Any], extra_info: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What a reward finds in `Trajectory.extra`: the row's own facts under their names, ours beside them."""
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    extra = {key: value for key, value in extra_info.items() if key not in ("session", "tools") and value is not None}
    return {**extra, "data_source": row.get("data_source"), "ground_truth": truth, "global_step": step}


def _output(rollout: Rollout, engine: VerlEngine, problems: int | None) -> TrajectoryOutput:
    trajectory = rollout.trajectory
    fields: dict[str, Any] = {
        "turn_scores": [],
        "tool_rewards": [],
        **engine.fields,
        TRAJECTORY: dump_trajectory(trajectory, rollout.appended),
        "toolrl_audit": problems,
    }
    return TrajectoryOutput(
        prompt_ids=rollout.prompt_ids,
        response_ids=rollout.response_ids,
        response_mask=rollout.response_mask,
        response_logprobs=rollout.logprobs,
        routed_experts=engine.routed_experts,
        multi_modal_data={},
        num_turns=1 + len(trajectory.steps) + len(rollout.appended),
        metrics=AgentLoopMetrics(
            generate_sequences=rollout.generate_seconds,
            tool_calls=rollout.tool_seconds,
            num_preempted=engine.preempted,
        ),
        extra_fields=fields,
    )


@register("toolrl_dialogue")
class ToolRLLoop(DialogueLoop):
    """ToolRL's `<tool_call>` and `<obs>`."""

    form = "toolrl"


@register("toolrl_native")
class NativeLoop(DialogueLoop):
    """Function calling through the model's chat template."""

    form = "native"


@register("toolrl_react")
class ReActLoop(DialogueLoop):
    """Thought, Action, Observation."""

    form = "react"
