"""The command line of a run: `python -m verl.trainer.main_ppo ...`, as it is run and as it is shown.

The shown line works by itself: the variables in front are those that verl needs (`VERL_PLATFORM`, the place of the
metrics file). What only the keeper needs (the run's mark, Ray's scratch folder) is left out of it.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_toolrl.launch.processes import MARK
from verl_toolrl.launch.recipes import Composed, Recipe, override_key, quote
from verl_toolrl.launch.residue import scratch_folder
from verl_toolrl.launch.runs import Run

__all__ = ["Command", "build_command", "ray_cluster", "run_variables"]


@dataclass(frozen=True)
class Command:
    """What is executed."""

    argv: list[str]
    environment: dict[str, str]
    """Variables that verl needs, on top of the user's environment."""

    bookkeeping: dict[str, str] = field(default_factory=dict)
    """Variables by which the run's processes and files are found again."""

    def shell_line(self) -> str:
        """The line to paste into a shell; the interpreter relative to the working folder where it lies below it."""
        python = Path(self.argv[0])
        if python.is_relative_to(Path.cwd()):
            python = python.relative_to(Path.cwd())
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, shlex.quote(str(python)), *map(shlex.quote, self.argv[1:])])


def ray_cluster(composed: Composed, environ: Mapping[str, str]) -> str | None:
    """Address of the Ray cluster that verl will join; None when it starts its own.

    The order is Ray's: `RAY_ADDRESS`, the address in the configuration, a cluster started here with `ray start`.
    """
    given = environ.get("RAY_ADDRESS") or composed.get("ray_kwargs.ray_init.address")
    if given and given != "auto":
        return None if given == "local" else str(given)
    folder = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
        host, _, port = address.rpartition(":")
        # The file outlives a cluster that was killed.
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return address
    except (OSError, ValueError):
        return "auto" if given else None


def run_variables(run: Run, *, own_ray: bool) -> dict[str, str]:
    """Variables by which the processes and files of a run are found again.

    Args:
        run: The run.
        own_ray: Whether its Ray cluster is its own; its session then goes to the run's scratch folder.
    """
    variables = {
        MARK: run.id,
        "VERL_TOOLRL_RUN_DIR": str(run.folder),
        # Without it setproctitle overwrites the environment that /proc shows, and with it the mark.
        "SPT_NOENV": "1",
        # A block buffer would hold the last lines back when a run dies.
        "PYTHONUNBUFFERED": "1",
    }
    if not own_ray:
        return variables
    # Ray makes the folder. vLLM's sockets go there too; those of a killed engine would stay in /tmp.
    scratch = str(scratch_folder(run.id))
    return variables | {"RAY_TMPDIR": scratch, "VLLM_RPC_BASE_PATH": scratch}


def build_command(
    recipe: Recipe, run: Run, composed: Composed, *, resume: bool, cluster: str | None, only_validate: bool = False
) -> Command:
    """Build the command of the run's newest attempt.

    A key that the user overrides is left to the user.

    Args:
        recipe: What to run.
        run: Where to; its newest attempt holds the user's overrides.
        composed: The recipe with the user's overrides.
        resume: Whether to go on from the last checkpoint of the folder.
        cluster: Ray cluster that is joined; its workers do not inherit our environment and get it through Ray.
        only_validate: Whether nothing is left but the validation after the last step.

    Raises:
        ConfigError: `trainer.logger` names no loggers, or the recipe has no trainer here.
    """
    overrides = run.attempt.overrides
    environment = {"VERL_PLATFORM": "cpu"} if composed.on_cpu else {}
    environment["VERL_FILE_LOGGER_PATH"] = str(run.file("metrics.jsonl"))
    keeps_temporary = "RAY_TMPDIR" not in os.environ and not composed.get("ray_kwargs.ray_init._temp_dir")
    bookkeeping = run_variables(run, own_ray=cluster is None and keeps_temporary)
    ours = {
        "trainer.default_local_dir": quote(str(run.folder / "checkpoints")),
        "hydra.run.dir": quote(str(run.folder)),
        "hydra.output_subdir": "null",
    }
    if "ray_kwargs" not in composed.config:
        cluster = None  # supervised training does without Ray
    loggers = composed.names("trainer.logger", "a logger or a list of loggers")
    if "file" not in loggers:
        ours["trainer.logger"] = f"[{','.join([*loggers, 'file'])}]"
        overrides = [override for override in overrides if override_key(override) != "trainer.logger"]
    if resume and composed.get("trainer.resume_mode") == "disable":
        ours["trainer.resume_mode"] = "auto"
        overrides = [override for override in overrides if override_key(override) != "trainer.resume_mode"]
    if only_validate:
        for key in ("trainer.val_before_train", "trainer.val_only"):
            ours[key] = "true"
            overrides = [override for override in overrides if override_key(override) != key]
    if cluster is not None:
        for key, value in {**environment, **bookkeeping}.items():
            # Always in quotes: Ray wants texts, and Hydra reads a run id such as 12e45678 as a number.
            ours[f"+ray_kwargs.ray_init.runtime_env.env_vars.{key}"] = f"'{value}'"
    taken = {override_key(override) for override in overrides}
    argv = [sys.executable, "-m", composed.entry_point, *recipe.arguments]
    argv += [f"{key}={value}" for key, value in ours.items() if override_key(key) not in taken]
    return Command(argv=argv + overrides, environment=environment, bookkeeping=bookkeeping)
