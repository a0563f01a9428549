"""GDPO under verl's names: equal to verl's own estimators where it must be, and right where theirs cannot be used."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.estimators import StepInputs, step_inputs

# Prompts of five, four and two rollouts; the last two have equal rewards.
UIDS = [*["a"] * 5, *["b"] * 4, *["c"] * 2]
LENGTHS = [3, 9, 1, 4, 6, 2, 2, 8, 5, 7, 3]


def batch(seed: int, names: list[str]) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """A mask `(rows, 9)` and the components of each row."""
    random = np.random.default_rng(seed)
    mask = (torch.arange(9) < torch.tensor(LENGTHS).unsqueeze(1)).float()
    infos = [{name: float(random.random()) for name in names} for _ in UIDS]
    infos[-1] = infos[-2]
    return mask, infos


def on_last_token(values: list[float], mask: torch.Tensor) -> torch.Tensor:
    placed = torch.zeros_like(mask)
    placed[torch.arange(len(values)), mask.sum(1).long() - 1] = torch.tensor(values)
    return placed


def run(mask: torch.Tensor, inputs: StepInputs, rewards: torch.Tensor | None = None, **toolrl: Any) -> torch.Tensor:
    """Compute advantages the way verl's V1 trainer does."""
    config = OmegaConf.create({"adv_estimator": "toolrl_gdpo", "toolrl": toolrl})
    uids = np.array([key.rsplit("_", 2)[0] for key in inputs.keys], dtype=object)
    rewards = torch.zeros_like(mask) if rewards is None else rewards
    data = DataProto.from_dict({"token_level_rewards": rewards, "response_mask": mask}, {"uid": uids})
    with step_inputs(inputs):
        data = compute_advantage_for_multi_trajectories(
            data, batch_keys=list(inputs.keys), adv_estimator="toolrl_gdpo", config=config
        )
    return data.batch["advantages"]


def plain_inputs(infos: list[dict[str, float]]) -> StepInputs:
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(UIDS)]
    return StepInputs(keys, [False] * len(keys), infos, rollouts=4)


@pytest.mark.parametrize("seed", range(3))
def test_one_component_equals_grpo(seed: int) -> None:
    """BEHAVIOUR LOCK: with `batch_norm: none` to the last digit, with the paper's up to one positive factor."""
    mask, infos = batch(seed, ["correctness"])
    rewards = on_last_token([info["correctness"] for info in infos], mask)
    expect, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, np.array(UIDS, dtype=object))
    torch.testing.assert_close(run(mask, plain_inputs(infos), batch_norm="none"), expect, atol=1e-5, rtol=1e-5)
    normed = run(mask, plain_inputs(infos))
    factors = (normed / expect)[(mask > 0) & (expect.abs() > 1e-3)]
    assert float(factors.min()) > 0 and float(factors.max() - factors.min()) < 1e-4


@pytest.mark.parametrize("weights", [None, [0.5, 2.0]], ids=["equal", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_over_tokens_it_equals_verls_own_gdpo(seed: int, weights: list[float] | None) -> None:
    """verl's function works where it is given what the V1 trainer does not give."""
    mask, infos = batch(seed, ["format", "correctness"])
    prompts = torch.zeros(len(UIDS), 2)
    expect, _ = core_algos.compute_gdpo_outcome_advantage(
        torch.zeros_like(mask),
        mask,
        np.array(UIDS, dtype=object),
        config={"gdpo_reward_keys": ["format", "correctness"], "gdpo_reward_weights": weights},
        non_tensor_batch={name: [info[name] for info in infos] for name in ("format", "correctness")},
        batch={"prompts": prompts, "attention_mask": torch.cat([torch.ones_like(prompts), mask], 1).long()},
    )
    found = run(mask, plain_inputs(infos), batch_norm="token", weights=weights)
    torch.testing.assert_close(found, expect, atol=1e-4, rtol=1e-4)


def test_verls_own_gdpo_fails_on_its_v1_trainer() -> None:
    """Why there is `toolrl_gdpo`; when this fails, verl has caught up."""
    mask, infos = batch(0, ["format"])
    data = DataProto.from_dict(
        {"token_level_rewards": mask, "response_mask": mask}, {"uid": np.array(UIDS, dtype=object)}
    )
    config = OmegaConf.create({"adv_estimator": "gdpo", "gdpo_reward_keys": ["format"]})
    with pytest.raises(KeyError):
        compute_advantage_for_multi_trajectories(data, plain_inputs(infos).keys, "gdpo", config=config)


def test_padding_rows_are_in_no_statistic_and_get_nothing() -> None:
    mask, infos = batch(1, ["format", "correctness"])
    expect = run(mask, plain_inputs(infos))
    padding = torch.zeros(2, mask.shape[1])
    padding[:, 0] = 1  # whatever the mask says
    inputs = plain_inputs(infos)
    padded = StepInputs(
        [*inputs.keys, "pad0_0_0", "pad0_1_0"],
        [*inputs.padding, True, True],
        # verl copies the first row's fields into padding.
        [*inputs.infos, infos[0], infos[0]],
        rollouts=4,
    )
    found = run(torch.cat([mask, padding]), padded)
    torch.testing.assert_close(found[:-2], expect)
    assert 0.0 == float(found[-2:].abs().max())


def test_a_session_of_several_outputs_counts_once_by_its_last_output() -> None:
    mask, infos = batch(2, ["format", "correctness"])
    expect = run(mask, plain_inputs(infos))
    # The second session of prompt a hands over three outputs, in any order; the last one's components count.
    keys, rows, more = list(plain_inputs(infos).keys), list(infos), mask[:2].clone()
    keys[1] = "a_1_2"
    inputs = StepInputs(["a_1_1", *keys, "a_1_0"], [False] * (len(keys) + 2), [None, *rows, rows[1]], rollouts=4)
    found = run(torch.cat([more[:1], mask, more[1:]]), inputs)
    torch.testing.assert_close(found[1:-1], expect)
    value = float(expect[1, 0])
    torch.testing.assert_close(found[0], value * more[0])
    torch.testing.assert_close(found[-1], value * more[1])


def test_a_session_without_trained_tokens_is_in_no_statistic() -> None:
    """How a session that was lost to infrastructure is handed over."""
    mask, infos = batch(3, ["correctness"])
    keep = [row for row in range(len(UIDS)) if row != 4]
    inputs = plain_inputs(infos)
    kept = StepInputs([inputs.keys[row] for row in keep], [False] * len(keep), [infos[row] for row in keep], rollouts=4)
    expect = run(mask[keep], kept)
    mask[4] = 0
    found = run(mask, inputs)
    torch.testing.assert_close(found[keep], expect)
    assert 0.0 == float(found[4].abs().max())


@pytest.mark.parametrize(("rollouts", "learns"), [(1, True), (4, False)])
def test_a_session_alone_learns_only_where_a_prompt_has_one_rollout(rollouts: int, learns: bool) -> None:
    mask = torch.ones(2, 3)
    infos = [{"correctness": 3.0}, {"correctness": -3.0}]
    inputs = StepInputs(["a_0_0", "b_0_0"], [False, False], infos, rollouts=rollouts)
    assert learns == bool(run(mask, inputs).abs().max() > 0)


def test_without_our_trainer_it_says_which_to_take() -> None:
    mask, _ = batch(0, ["format"])
    with pytest.raises(ConfigError, match="trainer_mode: toolrl_sync"):
        core_algos.get_adv_estimator_fn("toolrl_gdpo")(mask, mask, config={"adv_estimator": "toolrl_gdpo"})


def test_a_reward_manager_without_components_is_an_authors_mistake() -> None:
    mask, infos = batch(0, ["format"])
    inputs = plain_inputs(infos)
    missing = StepInputs(inputs.keys, inputs.padding, [None, *infos[1:]], rollouts=4)
    with pytest.raises(ConfigError, match=r"reward_manager.name must\s+be toolrl"):
        run(mask, missing)


def test_an_unknown_component_names_those_that_there_are() -> None:
    mask, infos = batch(0, ["format", "correctness"])
    with pytest.raises(ConfigError, match="it has: format, correctness"):
        run(mask, plain_inputs(infos), components=["accuracy"])


def test_a_session_without_a_component_names_it_and_what_there_is() -> None:
    """Another reward manager may report what it likes of each session."""
    mask, infos = batch(0, ["format", "correctness"])
    inputs = plain_inputs([*infos[:3], {"format": 1.0}, *infos[4:]])
    with pytest.raises(ConfigError, match="no correctness for session a_3; it reported: format"):
        run(mask, inputs)
