"""Supervised rows with tools of their own, for verl's SFT trainer.

    data.custom_cls.path=pkg://verl_toolrl.integrations.sft_rows data.custom_cls.name=ToolsSFTDataset

verl hands a column `tools` to the chat template. As a list of schemas Parquet fills every schema with the keys of all
others, as nulls that the model then reads. Here the column may be the JSON text of the list, as `data make --format
native` writes it.
"""

from __future__ import annotations

import json

from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_toolrl.errors import DatasetError

__all__ = ["ToolsSFTDataset"]


class ToolsSFTDataset(MultiTurnSFTDataset):
    """verl's own data set, with `tools` read from JSON text where it is one.

    Raises:
        DatasetError: If a text is no JSON list.
    """

    def _read_files_and_process(self) -> None:
        super()._read_files_and_process()
        if self.tools is not None:
            self.tools = [_tools(value, index) for index, value in enumerate(self.tools)]


def _tools(value: object, index: int) -> object:
    if not isinstance(value, str):
        return value
    try:
        tools = json.loads(value)
    except ValueError as err:
        raise DatasetError(f"row {index}: tools is no JSON ({err})") from err
    if not isinstance(tools, list):
        raise DatasetError(f"row {index}: tools must be a JSON list of schemas, got {type(tools).__name__}")
    return tools
