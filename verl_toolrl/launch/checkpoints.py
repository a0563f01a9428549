"""From what a user calls a model to what an engine loads.

A name of a model hub stays as it is. A folder is an ordinary Hugging Face folder, a checkpoint of verl
(`global_step_16`, with the model below `actor/` after RL), or a run folder, whose newest checkpoint is meant. Where a
checkpoint holds shards of FSDP alone, verl's own merger makes a folder of them, outside the checkpoint.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.launch.runs import MARKER, last_checkpoint

__all__ = ["check_chat_template", "find_model", "has_weights", "needs_merge", "merge"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def find_model(text: str) -> Path | None:
    """Find the folder that is meant; None for a name of a model hub.

    Raises:
        ConfigError: If the folder is not there or holds no model.
    """
    path = Path(text).expanduser()
    if not path.exists():
        # Hub names have one slash and no dot in front: Qwen/Qwen2.5-3B-Instruct.
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not path.parent.is_dir():
            return None
        raise ConfigError(
            f"{text}: no such folder (a checkpoint, a name such as Qwen/Qwen2.5-3B-Instruct, or an address such as "
            "http://localhost:8000/v1 is wanted)"
        )
    if not path.is_dir():
        raise ConfigError(f"{text} is a file: the folder of a checkpoint is wanted")
    found = _below(path.resolve())
    if found is None:
        raise ConfigError(f"{text} holds no model: no config.json in it, in huggingface/ or in actor/huggingface/")
    return found


def _below(path: Path) -> Path | None:
    if (path / MARKER).is_file() or (path / "latest_checkpointed_iteration.txt").is_file():
        checkpoints = path / "checkpoints" if (path / MARKER).is_file() else path
        step = last_checkpoint(checkpoints)
        if step is None:
            raise ConfigError(f"{path}: the run has saved no checkpoint (trainer.save_freq)")
        path = checkpoints / f"global_step_{step}"
    for place in (path, path / "huggingface", path / "actor" / "huggingface"):
        if (place / "config.json").is_file():
            return place
    return None


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder holds weights, and not only configuration and tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def needs_merge(folder: Path) -> bool:
    """Whether the weights lie beside the folder as shards of FSDP.

    Raises:
        ConfigError: If there are no weights at all.
    """
    if has_weights(folder):
        return False
    if folder.name == "huggingface" and any(folder.parent.glob("model_world_size_*_rank_*.pt")):
        return True
    raise ConfigError(f"{folder} has a configuration and no weights (*.safetensors)")


def merge(folder: Path, target: Path) -> Path:
    """Merge the shards beside `folder` into a Hugging Face folder with `verl.model_merger`.

    Raises:
        InfrastructureError: If the merger fails.
    """
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(folder.parent), "--target_dir", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not has_weights(target):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InfrastructureError(f"{folder.parent}: verl's merger failed: {last}")
    return target


def check_chat_template(folder: Path) -> None:
    """See that a tokenizer has a chat template, before anything is loaded.

    Raises:
        ConfigError: If it has none, or there is no tokenizer.
    """
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"{folder} has no tokenizer (tokenizer_config.json)") from err
    except (OSError, ValueError) as err:
        raise ConfigError(f"{folder / 'tokenizer_config.json'} cannot be read: {err}") from err
    if not isinstance(content, dict) or not content.get("chat_template"):
        raise ConfigError(
            f"{folder}: the model has no chat template, so no prompt can be written for it; an instruct model has one"
        )
