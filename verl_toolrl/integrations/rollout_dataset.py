"""verl's dataset without the prompts that our tools make too long.

verl leaves out a prompt that is longer than `data.max_prompt_length` (`data.filter_overlong_prompts`) and takes a part
of the rows (`data.train_max_samples`). It measures prompts as they stand in the file, while our agent loops add the
tools. `rollout_check` takes this class (`data.custom_cls`) where a prompt is too long and only the dataset can know
whether its row is used: here the rows that verl has kept are measured as the loop will see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_toolrl.errors import DatasetError
from verl_toolrl.integrations.rollout_loops import Workplace
from verl_toolrl.integrations.say import say
from verl_toolrl.rollout.settings import row_session

__all__ = ["PromptRoom", "RolloutDataset", "TooLong", "measure_in_dataset"]


@dataclass(frozen=True)
class TooLong:
    """Why a prompt cannot be rolled out."""

    reason: str
    left_out: bool
    """Whether `data.filter_overlong_prompts` covers it; else the recipe is to be mended."""


@dataclass(frozen=True)
class PromptRoom:
    """Measures prompts as our agent loops will see them."""

    places: Mapping[str, Workplace]
    """Agent loop -> its workplace."""
    default: str
    """Agent loop of a row that names none."""

    def problem(self, row: Mapping[str, Any]) -> TooLong | None:
        """Say why the prompt of a row does not fit; None if it does, and for the loops of others."""
        place = self.places.get(str(row.get("agent_name") or self.default))
        if place is None:
            return None
        allowed, room = place.limits.prompt_tokens, place.limits.context_tokens
        assert allowed is not None and room is not None
        messages, tools = place.prompt(row, row_session(row.get("extra_info"), place.budget).tools)
        length = len(place.chat.prompt_ids(messages, tools=tools))
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
            DatasetError: For the first prompt that does not fit, where verl is not told to leave out long ones.
        """
        dataframe = super().maybe_filter_out_long_prompts(dataframe)
        if _room is None:  # a process that only asks the class how it reads images
            return dataframe
        kept = []
        for number, row in enumerate(dataframe):
            problem = _room.problem(row)
            if problem is None:
                kept.append(number)
            elif not (self.filter_overlong_prompts and problem.left_out):
                files = ", ".join(map(str, self.original_data_files))
                raise DatasetError(f"row {number} of the {len(dataframe)} that are used of {files}: {problem.reason}")
        if len(kept) == len(dataframe):
            return dataframe
        dropped = len(dataframe) - len(kept)
        say(
            f"{dropped} of {len(dataframe)} prompts are longer than data.max_prompt_length={self.max_prompt_length} "
            "only with their tools and are left out"
        )
        return dataframe.select(kept)
