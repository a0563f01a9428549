"""Checks the rows of a run before a model is loaded.

verl finds a ground truth that cannot be read an hour later in a reward worker, and drops a row whose prompt it cannot
tokenise together with those that are too long. Here every row is read once at the start; what is wrong raises with
file, row and reason, what is too long is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig

from verl_toolrl.errors import DatasetError
from verl_toolrl.formats.tool_list import row_tools
from verl_toolrl.integrations.reward_info import refuse_taken_names
from verl_toolrl.integrations.say import say
from verl_toolrl.rewards import RewardFunction
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.trajectory import empty_trajectory, score_trajectory, takes_trajectory
from verl_toolrl.schema import validate_row

__all__ = ["as_list", "check_files", "check_row", "report_dropped", "rows_of"]


def rows_of(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row of local files stands, and the row."""
    for name in files:
        path = Path(str(name)).expanduser()
        if "://" not in str(name) and path.exists():
            for number, row in enumerate(_rows(path)):
                yield f"{path.name}: row {number}", row


def check_files(files: Sequence[str], reward: RewardFunction) -> int:
    """Read every row of local parquet or JSON files and check its form and its ground truth.

    Args:
        files: Paths as `data.train_files` gives them. Those on remote storage, which verl fetches later, are left out.
        reward: The reward of the run: whether a ground truth can be read is for it to say, so it scores an empty
        response.

    Returns:
        Number of rows that were read.

    Raises:
        DatasetError: For the first row that is wrong, and for a file that is missing or empty.
        ConfigError: If the reward does not answer as it must, or a component of it has a name of ours.
    """
    count = 0
    for name in files:
        if "://" in str(name):
            continue
        path = Path(str(name)).expanduser()
        if not path.exists():
            raise DatasetError(f"{path}: no such file (data.train_files or data.val_files)")
        rows, uncompared = 0, ""
        for rows, row in enumerate(_rows(path), 1):
            where = f"{path.name}: row {rows - 1}"
            check_row(row, reward, where)
            if not uncompared and not takes_trajectory(reward):
                uncompared = _uncompared(row["reward_model"]["ground_truth"], where)
        if uncompared:
            say(uncompared)
        if rows == 0:
            raise DatasetError(f"{path}: no rows")
        count += rows
    return count


def _uncompared(ground_truth: Any, where: str) -> str:
    """Return a sentence if the reward reads a ground truth that has no calls to compare with; empty where it has."""
    try:
        parse_ground_truth(ground_truth)
    except DatasetError as err:
        return (
            f"{where}: the ground truth is no calls ({err}); for such rows acc and calls/... that compare with it are "
            "0, unless the reward reports an acc of its own"
        )
    return ""


def check_row(row: Mapping[str, Any], reward: RewardFunction, where: str) -> None:
    """Check the form of a row and its ground truth: the reward scores an empty response.

    Args:
        row: As the file has it.
        reward: The reward of the run.
        where: Begins the text of an error.

    Raises:
        DatasetError: The row is wrong.
        ConfigError: If the reward does not answer as it must, or a component of it has a name of ours.
    """
    validate_row(row, where)
    tools = row_tools(row, where) or None
    try:
        if takes_trajectory(reward):
            result, _ = score_trajectory(reward, empty_trajectory(row), total_steps=1)
        else:
            truth = row["reward_model"]["ground_truth"]
            result = reward(response="", ground_truth=truth, tools=tools, total_steps=1)
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err
    refuse_taken_names(reward, result.components, trajectory=takes_trajectory(reward))


def report_dropped(dataset: Any, rows: int, config: DictConfig, where: str) -> int:
    """Say how many rows verl left out because their prompt is longer than `data.max_prompt_length`.

    Returns:
        Their number.

    Raises:
        DatasetError: If none is left.
    """
    dropped = max(0, rows - len(dataset)) if rows else 0
    limit = config.data.max_prompt_length
    if len(dataset) == 0:
        raise DatasetError(f"{where}: all {rows} prompts are longer than data.max_prompt_length={limit} tokens")
    if dropped:
        say(f"{where}: {dropped} of {rows} prompts are longer than {limit} tokens and are left out")
    return dropped


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(batch_size=512):
                yield from batch.to_pylist()
        else:
            text = path.read_bytes()
            yield from orjson.loads(text) if text.lstrip()[:1] == b"[" else map(orjson.loads, text.splitlines())
    except (OSError, ValueError) as err:
        raise DatasetError(f"{path}: cannot be read: {err}") from err


def as_list(files: Any) -> list[str]:
    """Return `data.train_files` as a list, whatever form the recipe gave it."""
    return list(files) if isinstance(files, (list, tuple, ListConfig)) else [str(files)]
