"""What can be found out before a run starts: too little memory, a port in use, a file that is not there.

Each is one sentence now instead of a traceback of Ray minutes later. A recipe says what it needs:

    launch:
      memory_gb: 14
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.launch.processes import Process, marked_runs, process_table
from verl_toolrl.launch.recipes import Composed, Recipe

__all__ = [
    "available_memory",
    "check_engine",
    "check_files",
    "check_memory",
    "check_ports",
    "check_recipe",
    "data_files",
    "describe_runs",
    "has_our_rows",
]

GB = 1e9
_PORTS = {
    # key: (key that must be true for the port to be opened on this machine, or "")
    "ray_kwargs.ray_init.dashboard_port": "",
    "ray_kwargs.ray_init._metrics_export_port": "",
    "transfer_queue.metrics.port": "transfer_queue.metrics.enabled",
    "actor_rollout_ref.rollout.disaggregation.bootstrap_port": "actor_rollout_ref.rollout.disaggregation.enable",
}
_LAST_PORT = 65535

_CHECK_SECONDS = 120.0

_ENGINES = {
    "vllm": "`make setup` brings it for the CPU, pip install 'verl-toolrl[vllm]' else",
    "sglang": "pip install 'verl-toolrl[sglang]', and without a GPU what recipes/rollout/README.md says",
}
"""Module of an engine -> how to get it."""


def available_memory() -> int:
    """Bytes that a new program can have: the kernel's estimate, or what the control group leaves if that is less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            left = int(Path(limit).read_text()) - int(Path(usage).read_text())
            # Page cache counts as usage and is given back on demand.
            stat = dict(line.split() for line in Path(usage).with_name("memory.stat").read_text().splitlines())
            free = min(free, left + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return max(0, free)


def check_memory(composed: Composed, *, can_force: bool = True) -> None:
    """Compare the memory that the recipe asks for (`launch.memory_gb`) with what is there.

    Args:
        composed: The recipe with the user's overrides.
        can_force: Whether the command has `--force`.

    Raises:
        ConfigError: There is less; the text names the largest program and runs that were left behind.
    """
    need = composed.get("launch.memory_gb")
    if need is None:
        return
    try:
        needed = float(need) * GB
    except (TypeError, ValueError) as err:
        raise ConfigError(f"launch.memory_gb: a number of gigabytes is wanted, found {need!r}") from err
    free = available_memory()
    if free >= needed:
        return
    leftovers = describe_runs(marked_runs())
    largest = max(process_table().values(), key=lambda process: process.resident_bytes)
    if leftovers:
        hint = f"runs are still there, which `verl-toolrl stop` ends: {leftovers}"
    else:
        hint = f"most is used by {largest.title[:60]!r} (process {largest.pid}, {largest.resident_bytes / GB:.1f} GB)"
    raise ConfigError(
        f"this recipe needs about {needed / GB:.0f} GB of memory and {free / GB:.1f} GB are free; {hint}"
        + ("; --force starts it nevertheless" if can_force else "")
    )


def describe_runs(runs: dict[str, list[Process]]) -> str:
    """`3f9a12cd (5 processes, 4.1 GB)` for each marked run that has living processes."""
    return ", ".join(
        f"{run_id} ({len(processes)} processes, {sum(p.resident_bytes for p in processes) / GB:.1f} GB)"
        for run_id, processes in runs.items()
    )


def check_ports(composed: Composed) -> None:
    """Try the ports that the configuration fixes; those that verl, Ray and vLLM choose themselves are free by choice.

    Raises:
        ConfigError: One of them is in use, or is no port.
    """
    for key, condition in _PORTS.items():
        port = composed.get(key)
        if not isinstance(port, int) or port <= 0 or (condition and not composed.get(condition)):
            continue
        if port > _LAST_PORT:
            raise ConfigError(f"{key}: a port from 1 to {_LAST_PORT} is wanted, found {port}")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as err:
                other = port + 1 if port < _LAST_PORT else port - 1
                # ++ because verl's own configuration lacks some of these keys.
                raise ConfigError(f"port {port} is in use ({key}): choose another with ++{key}={other}") from err


def check_engine(composed: Composed) -> None:
    """See that the recipe's rollout engine is installed here; verl would fail on it in a worker, a minute later.

    Raises:
        ConfigError: It is not.
    """
    name = composed.get("actor_rollout_ref.rollout.name")
    if name in _ENGINES and importlib.util.find_spec(name) is None:
        raise ConfigError(f"actor_rollout_ref.rollout.name={name}: {name} is not installed; {_ENGINES[name]}")


def check_files(composed: Composed) -> None:
    """See that local data files and a local model folder are there, and that the first row of each file has its form.

    Every row is read by our trainers, which is a minute later.

    Raises:
        ConfigError: One is not there; the text names the key.
        DatasetError: A file cannot be read or is empty, a column is missing or has another form.
    """
    ours = has_our_rows(composed)
    for key, entry in data_files(composed):
        if not Path(entry).expanduser().exists():
            raise ConfigError(f"{key}: {entry} does not exist (give {key}=FILE.parquet)")
        if ours:
            _check_first_row(entry)
    model = composed.get("actor_rollout_ref.model.path")
    if isinstance(model, str) and model.startswith(("/", "~", "./", "../")) and not Path(model).expanduser().exists():
        raise ConfigError(f"actor_rollout_ref.model.path: {model} does not exist")


def has_our_rows(composed: Composed) -> bool:
    """Whether a trainer of ours reads the rows; trainers and dataset classes of others may want other columns."""
    mode = str(composed.get("trainer.v1.trainer_mode"))
    return mode.startswith("toolrl_") and not composed.get("data.custom_cls.path")


def data_files(composed: Composed) -> Iterator[tuple[str, str]]:
    """Yield key and path of each local data file.

    Raises:
        ConfigError: The value of a key names no files.
    """
    for key in ("data.train_files", "data.val_files"):
        try:
            entries = composed.names(key, "a file or a list of files")
        except ConfigError:
            if not composed.get("data.custom_cls.path"):  # a dataset class of the user may be given what it likes
                raise
            continue
        yield from ((key, entry) for entry in entries if "://" not in entry)


def check_recipe(recipe: Recipe, overrides: list[str], composed: Composed, *, rows: bool = True) -> list[str]:
    """Ask `recipes check` about a recipe that is to be started, and score the first row of each data file.

    Args:
        recipe: What is to be started.
        overrides: The user's.
        composed: The recipe with them.
        rows: Whether the data files are there already.

    Returns:
        What is said beside; also that nothing could be found out, which is no reason to refuse.

    Raises:
        ConfigError: There are mistakes; the text holds all of them.
    """
    # A process of its own: modules of the user are imported, and for a name that no source holds all of verl.
    argv = [sys.executable, "-m", "verl_toolrl.recipe_check.before_start", *(["--rows"] if rows else [])]
    environment = {**os.environ, **({"VERL_PLATFORM": "cpu"} if composed.on_cpu else {})}
    try:
        done = subprocess.run(
            [*argv, "--", recipe.label, *overrides],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_CHECK_SECONDS,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return [f"the recipe was not checked: it took more than {_CHECK_SECONDS:.0f} seconds"]
    except ValueError:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return [f"the recipe was not checked: {said[0]}"]
    refused = found["refused"]
    if len(refused) == 1:
        raise ConfigError(f"{refused[0]}; --force starts nevertheless")
    if refused:
        mistakes = "".join(f"\n  {text}" for text in refused)
        raise ConfigError(f"{recipe.label}: {len(refused)} mistakes; --force starts nevertheless{mistakes}")
    return list(found["noted"])


def _check_first_row(file: str) -> None:
    from verl_toolrl.integrations.rows import rows_of
    from verl_toolrl.schema import validate_row

    first = next(rows_of([file]), None)
    if first is None:
        raise DatasetError(f"{file}: no rows")
    where, row = first
    validate_row(row, where)
