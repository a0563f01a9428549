"""RLLA, ToolRL's own data: supervised rows `{instruction, input, output}` to verl's RL and SFT rows, and their split.

Source: qiancheng0/ToolRL@8cee13e, dataset/rlla_4k_raw. The instruction (tools on offer and the output format) is the
system message, the input (the dialogue so far) the user message, and the output, with its thoughts, both the reference
to score against and the target of supervised training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_toolrl.errors import DatasetError

__all__ = ["SEED", "TEST_SHARE", "released_row", "released_split", "rl_row", "sft_row"]

SEED = 31415
"""Seed of the authors' shuffle."""
TEST_SHARE = 0.02
"""Share of the rows, from the end of the shuffled list, that the authors test on."""

_KEYS = ("instruction", "input", "output")


def rl_row(raw: Mapping[str, Any], *, index: int, split: str = "train", data_source: str = "rlla") -> dict[str, Any]:
    """Turn one supervised row into a row of verl's RL schema.

    Raises:
        DatasetError: If a key is missing or is not text; the text names the row.
    """
    instruction, user, output = _texts(raw, index)
    return {
        "data_source": data_source,
        "prompt": [{"role": "system", "content": instruction}, {"role": "user", "content": user}],
        "ability": "tool_use",
        "reward_model": {"style": "rule", "ground_truth": output},
        "extra_info": {"index": index, "split": split},
    }


def released_split(rows: Sequence[Any], *, seed: int = SEED, test_share: float = TEST_SHARE) -> tuple[list[Any], ...]:
    """Split rows into training and test rows as the authors do (dataset/rlla_4k_raw/rlla.py).

    numpy's legacy generator shuffles the list in place; the last `int(test_share * rows)` rows are the test rows.
    """
    import numpy

    shuffled = list(rows)
    # A generator of our own with that seed draws what numpy.random.seed and numpy.random.shuffle would.
    numpy.random.RandomState(seed).shuffle(shuffled)
    test = int(test_share * len(shuffled))
    return shuffled[: len(shuffled) - test], shuffled[len(shuffled) - test :]


def released_row(raw: Mapping[str, Any], *, index: int, split: str) -> dict[str, Any]:
    """Turn one supervised row into a row with the authors' columns; `ability` is `math` there.

    Raises:
        DatasetError: As for `rl_row`.
    """
    instruction, user, output = _texts(raw, index)
    return {
        "data_source": "rlla",
        "prompt": [{"content": instruction, "role": "system"}, {"content": user, "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": output, "style": "rule"},
        "extra_info": {"index": index, "input": user, "instruction": instruction, "output": output, "split": split},
    }


def sft_row(raw: Mapping[str, Any], *, index: int) -> dict[str, Any]:
    """Turn one supervised row into a row of verl's SFT trainer: `messages`.

    Raises:
        DatasetError: As for `rl_row`.
    """
    instruction, user, output = _texts(raw, index)
    return {
        "messages": [
            {"role": "system", "content": instruction},
            {"role": "user", "content": user},
            {"role": "assistant", "content": output},
        ]
    }


def _texts(raw: Mapping[str, Any], index: int) -> tuple[str, str, str]:
    for key in _KEYS:
        if not isinstance(raw.get(key), str):
            raise DatasetError(
                f"row {index}: {key!r} must be text, got {type(raw.get(key)).__name__} (keys: {sorted(raw)})"
            )
    return raw["instruction"], raw["input"], raw["output"]
