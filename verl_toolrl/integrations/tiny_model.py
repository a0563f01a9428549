"""A stand-in for a chat model: a random Qwen2 of two layers (0.2 M parameters) with a tokenizer of bytes.

For what needs a model that loads and no model that knows anything: checking a recipe, a dry run of a set-up. It speaks
ChatML and tokenizes any text without a network.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["write_tiny_model"]

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path | None = None, *, weights: bool = True) -> Path:
    """Write the model unless it is there already, and return its folder.

    Args:
        folder: Where to; by default `$XDG_CACHE_HOME/verl-toolrl/tiny-qwen2-128`. It appears whole or not at all.
        weights: Whether to write weights, too; without them it is enough for configurations and takes no torch.
    """
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "verl-toolrl" / "tiny-qwen2-128"
    if _is_complete(folder, weights):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(temporary)
    _save_model(temporary, tokenizer, weights)
    if folder.exists() and not _is_complete(folder, weights):  # written without weights before
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(folder: Path, weights: bool) -> bool:
    return (folder / "config.json").exists() and (not weights or (folder / "model.safetensors").exists())


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_TEMPLATE
    )


def _save_model(folder: Path, tokenizer: Any, weights: bool) -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,  # 32 a head, the smallest that vLLM's attention on the CPU knows
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["Qwen2ForCausalLM"],
    )
    if not weights:
        config.save_pretrained(folder)
        return
    import torch
    from transformers import Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
