"""The line that `verl-toolrl train` shows is a line of verl, and bad input is one sentence before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("verl")


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "verl_toolrl.cli", "train", *arguments],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides that name data files which exist."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row

    file = tmp_path / "my rows.parquet"
    call = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>'
    raw = {"instruction": "Call f.", "input": "Now.", "output": call}
    pq.write_table(pa.Table.from_pylist([rl_row(raw, index=0)]), file)
    return [f"data.train_files='{file}'", f"data.val_files='{file}'"]


@pytest.mark.parametrize("own_yaml", [False, True], ids=["by name", "by path"])
def test_the_shown_line_works_by_itself(tmp_path: Path, data: list[str], own_yaml: bool) -> None:
    recipe = "toolrl/quickstart"
    if own_yaml:
        recipe = "my folder/mine.yaml"
        (tmp_path / "my folder").mkdir()
        (tmp_path / recipe).write_text("defaults: [/toolrl/quickstart, _self_]\ntrainer: {experiment_name: mine}\n")
    shown = train(tmp_path, recipe, *data, "trainer.total_training_steps=7", "--dry-run", "--force", "-o", "a run")
    assert shown.returncode == 0, shown.stderr
    line = shown.stdout.strip()
    # verl's own entry point reads the line and prints the configuration that it would train with.
    done = subprocess.run(f"{line} --cfg job", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout[done.stdout.index("actor_rollout_ref:") :])
    assert 7 == config["trainer"]["total_training_steps"]
    assert str(tmp_path / "a run" / "checkpoints") == config["trainer"]["default_local_dir"]
    assert ("mine" if own_yaml else "quickstart") == config["trainer"]["experiment_name"]
    assert str(tmp_path / "my rows.parquet") == config["data"]["train_files"]
    assert not (tmp_path / "a run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toolrl/quikstart"], "did you mean 'toolrl/quickstart'"),
        (["toolrl/quickstart", "trainer.total_trainin_steps=3"], "did you mean 'trainer.total_training_steps'"),
        (["toolrl/quickstart", "trainer"], "is no override"),
        (["toolrl/quickstart", "data.train_files=gone.parquet"], "data.train_files: gone.parquet does not exist"),
        (["toolrl/quickstart", "DATA", "launch.memory_gb=1e6"], "needs about 1000000 GB"),
        (["toolrl/quickstart", "DATA", "launch.memory_gb=0.1", "+trainer.tset_freq=5"], "did you mean 'test_freq'"),
        (["toolrl/quickstart", "DATA", "--force", "--resume"], "--resume needs --output"),
        (["toolrl/quickstart", "DATA", "--force", "--resume", "-o", "nothing"], "nothing to resume"),
        (["toolrl/quickstart", "DATA", "--force", "-o", "."], "is not a run of verl-toolrl"),
        (["toolrl/quickstart", "DATA", "--force", "-o", "other"], "is the output of run 0123abcd"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    tmp_path: Path, data: list[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "other").mkdir()
    marker = {"folder": "", "id": "0123abcd", "recipe": "toolrl/quickstart", "host": "", "boot": ""}
    (tmp_path / "other" / "run.json").write_text(
        json.dumps({**marker, "attempts": [{"number": 1, "overrides": [], "state": "failed"}]})
    )
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    at = arguments.index("DATA") if "DATA" in arguments else len(arguments)
    done = train(tmp_path, *arguments[:at], *data[: 2 * ("DATA" in arguments)], *arguments[at + 1 :])
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert before == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))


def test_a_cpu_recipe_without_the_variable_says_so(tmp_path: Path, data: list[str]) -> None:
    shown = train(tmp_path, "toolrl/quickstart", *data, "--dry-run", "--force").stdout.strip()
    assert shown.startswith("VERL_PLATFORM=cpu ")
    gpu = train(tmp_path, "toolrl/quickstart", *data, "--dry-run", "--force", "hardware=gpu1")
    assert gpu.returncode == 0, gpu.stderr
    assert "VERL_PLATFORM" not in gpu.stdout
