"""From what a user calls a model to the folder that an engine loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.checkpoints import check_chat_template, find_model, needs_merge


def model_folder(path: Path, *, weights: bool = True, template: str | None = "{{ messages }}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    if weights:
        (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize("place", ["", "huggingface", "actor/huggingface"])
def test_a_model_is_found_where_hugging_face_and_verl_put_it(place: str, tmp_path: Path) -> None:
    expected = model_folder(tmp_path / "checkpoint" / place)
    assert expected == find_model(str(tmp_path / "checkpoint"))


def test_a_run_folder_means_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for step in (4, 8):
        model_folder(tmp_path / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("8")
    assert "global_step_8" in str(find_model(str(tmp_path)))


def test_a_name_of_a_hub_is_no_folder() -> None:
    assert find_model("Qwen/Qwen2.5-3B-Instruct") is None


@pytest.mark.parametrize("name", ["./gone", "/nowhere/model", "gone", "outputs/run/model"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        find_model(name)


def test_a_folder_without_a_model_and_a_run_without_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model: no config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="saved no checkpoint"):
        find_model(str(tmp_path))


def test_shards_are_merged_and_a_folder_without_any_weights_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "actor" / "huggingface", weights=False)
    with pytest.raises(ConfigError, match="no weights"):
        needs_merge(folder)
    (tmp_path / "actor" / "model_world_size_1_rank_0.pt").write_bytes(b"")
    assert needs_merge(folder)
    assert not needs_merge(model_folder(tmp_path / "whole"))


def test_a_model_without_chat_template_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    check_chat_template(model_folder(tmp_path / "inside"))
    beside = model_folder(tmp_path / "beside", template=None)
    with pytest.raises(ConfigError, match="no chat template"):
        check_chat_template(beside)
    (beside / "chat_template.jinja").write_text("{{ messages }}")
    check_chat_template(beside)


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        check_chat_template(folder)
