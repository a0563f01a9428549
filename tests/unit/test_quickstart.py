"""The stages of the quickstart that need no trainer: its rows, its settings, its table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from verl_toolrl.launch.quickstart import comparison, overrides, write_task


def test_rows_are_written_for_every_stage_and_do_not_depend_on_the_call(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_task(tmp_path / name, seed=3, train=5, val=2, sft=4)
    tables = {split: pq.read_table(tmp_path / "a" / f"{split}.parquet") for split in ("train", "val", "sft")}
    assert {"train": 5, "val": 2, "sft": 4} == {split: table.num_rows for split, table in tables.items()}
    assert tables["train"] == pq.read_table(tmp_path / "b" / "train.parquet")


def test_training_validates_before_the_first_and_after_the_last_step(tmp_path: Path) -> None:
    settings = overrides(tmp_path, tmp_path / "model", steps=6, seed=2)
    assert {"trainer.val_before_train=true", "trainer.test_freq=6", "data.seed=2"} <= set(settings)


def test_the_table_shows_the_greedy_validation_before_and_after() -> None:
    """Keys as verl 0.9.1 names them: `val-core` for the score, `val-aux` for what else the reward reports."""

    def validation(reward: float, form: float, correctness: float) -> dict[str, float]:
        return {
            "val-core/rlla/reward/mean@1": reward,
            "val-aux/rlla/format/mean@1": form,
            "val-aux/rlla/correctness/mean@1": correctness,
        }

    records = {0: validation(0.25, 0.9, -0.65), 1: {"training/global_step": 1.0}, 2: validation(0.75, 1.0, -0.25)}
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(comparison(records))
    text = captured.get()
    assert "+0.25" in text and "+0.75" in text and "correctness" in text
