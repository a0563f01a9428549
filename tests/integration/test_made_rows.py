"""Made rows under verl: files that a run accepts, and tools of single rows in its SFT data set and single-turn loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

import hydra
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.utils.import_utils import load_extern_object
from verl.workers.rollout.replica import TokenOutput

import verl_toolrl.integrations.agent_loop  # noqa: F401  registers the loop
from verl_toolrl.data.world import HELD_OUT, World, WorldSpec, make_world, write_world
from verl_toolrl.errors import DatasetError
from verl_toolrl.integrations.rows import check_files
from verl_toolrl.integrations.tiny_model import write_tiny_model
from verl_toolrl.rewards import make_reward

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}"
    "{% if loop.first and tools %}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(WorldSpec(format="native", train=8, sft=8, seen=0, unseen=0, no_tool=0))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(weights=False))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def data_set(file: Path, tokenizer: Any) -> Any:
    kind = load_extern_object("pkg://verl_toolrl.integrations.sft_rows", "ToolsSFTDataset")
    return kind(str(file), tokenizer, OmegaConf.create({"max_length": 16384, "pad_mode": "no_padding"}))


def test_supervised_rows_show_their_own_tools_and_train_the_call_alone(
    world: World, tokenizer: Any, tmp_path: Path
) -> None:
    rows = data_set(write_world(world, tmp_path / "data")["sft"], tokenizer)
    for index, row in enumerate(world.splits["sft"]):
        item = rows[index]
        text = tokenizer.decode(item["input_ids"])
        for tool in json.loads(row["tools"]):
            assert f"\n{json.dumps(tool, ensure_ascii=False)}" in text
        assert "null" not in text  # what Parquet makes of schemas that differ
        trained = [token for token, mask in zip(item["input_ids"], item["loss_mask"], strict=True) if mask]
        assert f"{row['messages'][-1]['content']}<|im_end|>\n" == tokenizer.decode(trained)


def test_a_text_that_is_no_list_of_tools_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "{}"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "sft.parquet")
    with pytest.raises(DatasetError, match="row 0: tools must be a JSON list"):
        data_set(tmp_path / "sft.parquet", tokenizer)


def test_the_single_turn_loop_puts_the_tools_of_a_row_into_the_prompt(world: World, tokenizer: Any) -> None:
    prompts = []

    class Client:
        async def generate(self, request_id: str, *, prompt_ids: list[int], **more: Any) -> TokenOutput:
            prompts.append(tokenizer.decode(prompt_ids))
            return TokenOutput(token_ids=tokenizer.encode("x<|im_end|>"), num_preempted=0)

    rollout = {
        "name": "vllm",
        "seed": 1,
        "prompt_length": 9999,
        "response_length": 9,
        "multi_turn": {"format": "hermes"},
    }
    config = OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": rollout, "model": {"path": ""}}})

    async def one(row: dict[str, Any]) -> None:
        loop = hydra.utils.instantiate(
            _agent_loop_registry["toolrl_single_turn"],
            trainer_config=DictConfigWrap(config),
            server_manager=Client(),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=object,
            data_config=DictConfigWrap(config.data),
            tools=None,
        )
        await loop.run({"temperature": 0.0}, raw_prompt=row["prompt"], **row)

    for row in world.splits["train"][:3]:
        asyncio.run(one(row))
        tools = [json.dumps(tool, ensure_ascii=False) for tool in json.loads(row["tools"])]
        assert all(f"\n{tool}" in prompts[-1] for tool in tools)
        assert row["prompt"][-1]["content"] in prompts[-1]


@pytest.mark.parametrize(("format", "mode"), [("toolrl", "released"), ("toolrl", "robust"), ("native", "robust")])
def test_a_run_accepts_the_files_and_reports_held_out_sets_apart(format: str, mode: str, tmp_path: Path) -> None:
    world = make_world(WorldSpec(format=format, train=8, sft=0, seen=4, unseen=4, no_tool=4))
    files = write_world(world, tmp_path / "rows")
    dialect = {"dialect": "hermes"} if format == "native" else {}
    reward = make_reward("toolrl", mode=mode, **dialect)
    assert 20 == check_files([str(file) for file in files.values()], reward)
    sources = [row["data_source"] for split in HELD_OUT for row in world.splits[split]]
    scores = [
        reward(response="", ground_truth=row["reward_model"]["ground_truth"], tools=row["extra_info"]["tools"]).score
        for split in HELD_OUT
        for row in world.splits[split]
    ]
    uids = [str(number) for number in range(len(sources))]
    found = process_validation_metrics(sources, uids, {"score": scores})
    assert ["world_no_tool", "world_seen", "world_unseen"] == sorted(found)
