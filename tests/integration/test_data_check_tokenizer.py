"""`data check` measures prompts with a real tokenizer of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.errors import ConfigError


def test_data_check_measures_prompts_with_a_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "tokenizer")
    row = {
        "data_source": "d",
        "prompt": [{"role": "user", "content": "a a a a"}],
        "reward_model": {"ground_truth": "Paris"},
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--max-prompt-length", "3"]
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "rows.jsonl"), *arguments])
    assert "prompt longer than 3 tokens" in " ".join(result.stdout.split()) and "max 4" in result.stdout
    missing = ["data", "check", str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "none")]
    error = CliRunner().invoke(app, missing).exception
    assert isinstance(error, ConfigError) and "cannot be loaded" in str(error)
