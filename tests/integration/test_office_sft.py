"""What the warm-up over several turns trains: the expert's own words and nothing that a tool or a template wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

from omegaconf import OmegaConf
from transformers import AutoTokenizer

from verl_toolrl.launch.quickstart_agent import write_rows
from verl_toolrl.rollout import ChatTokens


@pytest.fixture(scope="module")
def trained(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[Any]]:
    """verl's own dataset over six conversations, as its SFT trainer reads it."""
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    folder = tmp_path_factory.mktemp("office")
    write_rows(folder, seed=1, train=1, sft=10, held_out=1)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 1024, "truncation": "error"})
    dataset = MultiTurnSFTDataset(str(folder / "sft.parquet"), tokenizer, config)
    return tokenizer, dataset, dataset.messages


def test_only_the_experts_words_are_trained(trained: tuple[Any, Any, list[Any]]) -> None:
    tokenizer, dataset, conversations = trained
    for index, conversation in enumerate(conversations):
        row = dataset[index]
        words = tokenizer.decode(row["input_ids"][row["loss_mask"].bool()])
        expected = [message["content"] + "<|im_end|>\n" for message in conversation if message["role"] == "assistant"]
        assert "".join(expected) == words
        assert 2 <= len(expected) <= 3


def test_the_warm_up_reads_the_tokens_that_the_rollout_will(trained: tuple[Any, Any, list[Any]]) -> None:
    """Prompt, answers and what follows them, token for token as the loop appends them, from the first to the last."""
    tokenizer, dataset, conversations = trained
    chat = ChatTokens(tokenizer)
    for index, conversation in enumerate(conversations):
        tokens = chat.prompt_ids(conversation[:2])
        for at in range(2, len(conversation), 2):
            tokens += [*chat.encode(conversation[at]["content"]), tokenizer.eos_token_id]
            if at + 1 < len(conversation):
                tokens += asyncio.run(chat.tail_ids([conversation[at + 1]], tokenizer.eos_token_id))
        # The template ends the last message with a line break that no model writes.
        assert tokens == dataset[index]["input_ids"].tolist()[:-1]
