"""verl's dataset without the prompts that our tools make too long.

verl leaves out a prompt that is longer than `data.max_prompt_length` (`data.filter_overlong_prompts`) and takes a part
of the rows (`data.train_max_samples`). It measures prompts as they stand in the file, while our agent loops add the
tools: those of the toolbox, or of the row's column `tools` (`toolrl_single_turn`). `rollout_check` takes this class
(`data.custom_cls`) where a prompt is too long and only the dataset can know whether its row is used, and for rows with
a column `tools`, whose prompts verl's loop would cut without an error: here the rows that verl has kept are measured as
the loop will see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_toolrl.errors import DatasetError
from verl_toolrl.integrations.agent_loop import tools_of
from verl_toolrl.integrations.rollout_loops import context_tokens
from verl_toolrl.integrations.say import say
from verl_toolrl.rollout import TurnLimits
from verl_toolrl.schema import as_list

__all__ = ["PromptRoom", "RolloutDataset", "SingleTurnPlace", "TooLong", "measure_in_dataset"]


class Place(Protocol):
    """What knows how an agent loop makes a prompt of a row; `Workplace` for those of several turns."""

    limits: TurnLimits

    def prompt_length(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of the prompt of a row."""
        ...


class SingleTurnPlace:
    """Measures prompts as `toolrl_single_turn` makes them.

    Args:
        config: The trainer's whole configuration.
        tokenizer: Of the model.
    """

    def __init__(self, config: DictConfig, tokenizer: Any) -> None:
        rollout = config.actor_rollout_ref.rollout
        self._tokenizer, self._kwargs = tokenizer, dict(config.data.get("apply_chat_template_kwargs") or {})
        self.limits = TurnLimits(
            response_tokens=int(rollout.response_length),
            prompt_tokens=int(rollout.prompt_length),
            context_tokens=context_tokens(rollout),
        )

    def prompt_length(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt with the row's tools; 0 for a row without, which verl measures itself.

        Raises:
            DatasetError: If the column `tools` cannot be read, or the chat template refuses the row.
        """
        tools = tools_of(row.get("tools"))
        if tools is None:
            return 0
        messages = [dict(message) for message in as_list(row["prompt"]) or ()]
        kwargs = {**self._kwargs, "tools": tools, "add_generation_prompt": True, "tokenize": False}
        try:
            text = self._tokenizer.apply_chat_template(messages, **kwargs)
        except Exception as err:  # a template raises whatever its author wrote
            raise DatasetError(f"the chat template refuses a prompt with tools: {type(err).__name__}: {err}") from err
        return len(self._tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True)
class TooLong:
    """Why a prompt cannot be rolled out."""

    reason: str
    left_out: bool
    """Whether `data.filter_overlong_prompts` covers it; else the recipe is to be mended."""


@dataclass(frozen=True)
class PromptRoom:
    """Measures prompts as our agent loops will see them."""

    places: Mapping[str, Place]
    """Agent loop -> what measures its prompts."""
    default: str
    """Agent loop of a row that names none."""

    def problem(self, row: Mapping[str, Any]) -> TooLong | None:
        """Say why the prompt of a row does not fit; None if it does, and for the loops of others."""
        place = self.places.get(str(row.get("agent_name") or self.default))
        if place is None:
            return None
        allowed, room = place.limits.prompt_tokens, place.limits.context_tokens
        assert allowed is not None and room is not None
        length = place.prompt_length(row)
        if length > allowed:
            return TooLong(f"the prompt with its tools has {length} tokens, data.max_prompt_length is {allowed}", True)
        if length >= room:
            return TooLong(
                f"a prompt of {length} tokens leaves no room for an answer: "
                f"actor_rollout_ref.rollout.max_model_len is {room}",
                False,
            )
        return None


_room: PromptRoom | None = None


def measure_in_dataset(config: DictConfig, room: PromptRoom) -> None:
    """Let verl build its datasets in this process from `RolloutDataset`."""
    global _room
    _room = room
    for key, value in (("path", f"pkg://{__name__}"), ("name", RolloutDataset.__name__)):
        OmegaConf.update(config, f"data.custom_cls.{key}", value, force_add=True)


class RolloutDataset(RLHFDataset):
    """verl's own dataset, which then measures what is left with the tools in it."""

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """Leave out what verl does, then what is too long with its tools.

        Raises:
            DatasetError: For the first prompt that does not fit, where verl is not told to leave out long ones, or
                where no prompt fits.
        """
        dataframe = super().maybe_filter_out_long_prompts(dataframe)
        if _room is None:  # a process that only asks the class how it reads images
            return dataframe
        files = ", ".join(map(str, self.original_data_files))
        problem: TooLong | None = None
        kept = []
        for number, row in enumerate(dataframe):
            problem = _room.problem(row)
            if problem is None:
                kept.append(number)
            elif not (self.filter_overlong_prompts and problem.left_out):
                raise DatasetError(f"row {number} of the {len(dataframe)} that are used of {files}: {problem.reason}")
        if problem is not None and not kept:  # verl would go on to an error about its sampler
            raise DatasetError(f"no row of {files} is left; of the last, {problem.reason}")
        if len(kept) == len(dataframe):
            return dataframe
        dropped = len(dataframe) - len(kept)
        say(
            f"{dropped} of {len(dataframe)} prompts are longer than data.max_prompt_length={self.max_prompt_length} "
            "only with their tools and are left out"
        )
        return dataframe.select(kept)
