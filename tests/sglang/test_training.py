"""SGLang as verl's rollout engine: a few real steps of GRPO without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_toolrl.data.rlla import rl_row

pytestmark = pytest.mark.timeout(1500)

# Differs between the rollouts of a group, so that there is a gradient without a supervised warm-up.
REWARD = """
def score(*, response):
    return len(set(response.split())) / 20
"""


def run(recipe: str, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train with SGLang and return the metrics of each training step."""
    command = [sys.executable, "-m", "verl_toolrl.cli", "train", recipe, "rollout=sglang", "--force"]
    done = subprocess.run([*command, "--output", str(folder), *overrides], capture_output=True, text=True, timeout=1400)
    log = folder / "train.log"
    tail = log.read_text(errors="replace")[-6000:] if log.exists() else ""
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{tail}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["data"] for line in lines if "training/global_step" in line["data"]]


def test_grpo_trains_with_sglang_and_its_weights_follow(
    smollm2: Path, sample_rows: Callable[..., list[dict[str, str]]], tmp_path: Path
) -> None:
    rows = [rl_row(row, index=index) for index, row in enumerate(sample_rows(8, seed=3))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "reward.py").write_text(REWARD)
    steps = run(
        "toolrl/quickstart",
        tmp_path / "run",
        f"data.train_files={tmp_path / 'rows.parquet'}",
        f"data.val_files={tmp_path / 'rows.parquet'}",
        "data.train_batch_size=4",
        "data.max_response_length=32",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        # Large, so that an engine with stale weights would disagree with the trainer in the second step.
        "actor_rollout_ref.actor.optim.lr=2e-4",
        "~reward.reward_kwargs",
        f"+reward.reward_kwargs={{reward: '{tmp_path / 'reward.py'}:score'}}",
        "trainer.total_training_steps=2",
    )
    assert 2 == len(steps)
    for step in steps:
        assert step["actor/grad_norm"] > 0
        assert step["training/rollout_probs_diff_mean"] <= 0.01
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
