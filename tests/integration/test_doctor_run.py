"""doctor on this machine, with the real verl and vLLM, and in environments where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "verl_toolrl.cli", "doctor", "--json"]


def doctor(**environment: str) -> dict[str, Any]:
    done = subprocess.run(COMMAND, env={**os.environ, **environment}, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def errors(report: dict[str, Any]) -> list[str]:
    """What stands in the way besides memory, which other programs of this machine may use just now."""
    found = [finding["what"] for finding in report["findings"] if finding["severity"] == "error"]
    return [what for what in found if "GB of memory" not in what]


def test_doctor_finds_our_names_and_the_engine_here(tmp_path: Path) -> None:
    pytest.importorskip("verl", reason="needs verl")
    # Another plugin of verl that raises when it is loaded: verl would go on without a word.
    (tmp_path / "verl_broken.py").write_text("raise RuntimeError('boom')")
    info = tmp_path / "verl_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verl-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\nbroken = verl_broken\n")

    report = doctor(VERL_PLATFORM="cpu", PYTHONPATH=str(tmp_path))

    assert errors(report) == []
    registered = {(entry["kind"], entry["name"]): entry["module"] for entry in report["registered"]}
    assert registered["reward manager", "toolrl"] == "verl_toolrl.integrations.reward_manager"
    assert registered["trainer", "toolrl_sync"] == "verl_toolrl.integrations.trainer"
    assert registered["platform", "cpu"] == "verl_toolrl.integrations.cpu.platform"
    assert registered["training engine", "value_model/fsdp2/cpu"] == "verl_toolrl.integrations.cpu.engines"
    # Each registry was read, verl's own names with it.
    kinds = {"agent loop", "tool parser", "advantage estimator", "policy loss", "rollout engine"}
    assert kinds <= {kind for kind, _ in registered}
    assert registered["advantage estimator", "grpo"] == "verl.trainer.ppo.core_algos"
    assert [(engine["name"], engine["says"]) for engine in report["engines"]] == [("vllm", "runs on cpu")]
    (broken,) = [plugin for plugin in report["plugins"] if plugin["name"] == "broken"]
    assert "RuntimeError: boom" in broken["error"]
    assert "verl_broken.py" in broken["error"]


def test_a_platform_that_nobody_registered_is_the_one_thing_that_is_said() -> None:
    pytest.importorskip("verl", reason="needs verl")
    found = errors(doctor(VERL_PLATFORM="tpu"))
    assert len(found) == 1
    assert "Unknown platform 'tpu'" in found[0]


def test_where_verl_is_not_installed_doctor_says_so_at_once(tmp_path: Path) -> None:
    # An environment with everything that is installed here but verl and torch.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site_packages = next((tmp_path / "venv").glob("lib/*/site-packages"))
    for folder in [Path(folder) for folder in sys.path if folder.endswith("-packages")]:
        for place in folder.iterdir():
            hidden = place.name.partition("-")[0] in ("verl", "torch")
            more_folders = place.suffix == ".pth" and not place.name.startswith("__editable__")
            if not hidden and not more_folders and not (site_packages / place.name).exists():
                (site_packages / place.name).symlink_to(place)
    done = subprocess.run([str(tmp_path / "venv/bin/python"), *COMMAND[1:]], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert errors(json.loads(done.stdout)) == ["verl is not installed, wanted is verl>=0.9.1,<0.10"]
