"""verl's reward path ends in our reward: text, ground truth, step and horizon arrive as they were."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

from verl_toolrl.errors import ConfigError
from verl_toolrl.rewards import make_reward

TRUTH = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
WRONG = TRUTH.replace('"x": 1', '"x": 2')


class Characters:
    """A tokenizer with a token a character; id 0 pads."""

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> str:
        return "".join(chr(int(number)) for number in ids)


def config(**reward_kwargs: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "reward": {"reward_kwargs": reward_kwargs},
            "actor_rollout_ref": {"actor": {"optim": {"total_training_steps": 100}}},
        }
    )


def score(manager: Any, *responses: str, step: int = 0) -> dict[str, Any]:
    """Score one session whose outputs are `responses`, padded as verl pads them."""
    width = max(map(len, responses))
    ids = torch.tensor([[ord(letter) for letter in text] + [0] * (width - len(text)) for text in responses])
    rows = len(responses)
    columns: dict[str, list[Any]] = {
        "reward_model": [{"style": "rule", "ground_truth": TRUTH}] * rows,
        "data_source": ["rlla"] * rows,
        "extra_info": [{}] * rows,
        "global_steps": [step] * rows,
        "response_len": [len(text) for text in responses],
    }
    arrays = {key: np.fromiter(values, dtype=object, count=rows) for key, values in columns.items()}
    data = DataProto(batch=TensorDict({"responses": ids}, batch_size=rows), non_tensor_batch=arrays)
    return asyncio.run(manager.run_single(data))


def manager(**reward_kwargs: Any) -> Any:
    return get_reward_manager_cls("toolrl")(config=config(**reward_kwargs), tokenizer=Characters(), compute_score=None)


def test_a_right_answer_earns_the_maximum_under_verls_keys() -> None:
    result = score(manager(mode="released"), TRUTH)
    assert 4.0 == result["reward_score"]
    assert (1.0, 3.0) == (result["reward_extra_info"]["format"], result["reward_extra_info"]["correctness"])


def test_every_sample_has_the_same_scalar_keys() -> None:
    scored = manager(mode="released")
    infos = [score(scored, text)["reward_extra_info"] for text in (TRUTH, WRONG, "", "no call", "<tool_call>\n{")]
    assert len({tuple(info) for info in infos}) == 1
    assert all(isinstance(value, float) for info in infos for value in info.values())


def test_the_last_output_of_a_session_is_scored_without_its_padding() -> None:
    assert 4.0 == score(manager(mode="released"), TRUTH + " and then something longer", TRUTH)["reward_score"]


@pytest.mark.parametrize("step", [0, 29, 30, 104])
def test_the_step_is_verls_global_step(step: int) -> None:
    # two_stage: before step 30 correctness lies in [-1, 1], from then on in [-3, 3] and format in [0, 0.5].
    reward = make_reward("toolrl", mode="released", two_stage=True)
    expected = reward(response=WRONG, ground_truth=TRUTH, step=step).score
    assert expected == score(manager(mode="released", two_stage=True), WRONG, step=step)["reward_score"]


def test_an_unknown_option_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="equal_max"):
        manager(mode="released", equal_maxx=True)


def test_the_configured_reward_pickles_into_a_worker() -> None:
    reward = pickle.loads(pickle.dumps(manager(mode="released").reward))
    assert 4.0 == reward(response=TRUTH, ground_truth=TRUTH).score
