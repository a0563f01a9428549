"""The stand-in model: a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("torch", reason="needs torch")

from verl_toolrl.integrations.tiny_model import write_tiny_model


def test_a_folder_that_was_written_without_weights_gets_them_when_they_are_needed(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "tiny"
    assert write_tiny_model(folder, weights=False) == folder
    assert not (folder / "model.safetensors").exists()
    assert write_tiny_model(folder) == folder
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 50_000
    # Nothing is left beside it.
    assert [folder] == list(tmp_path.iterdir())
