"""GDPO through verl's own V1 trainer and a real TransferQueue, padding and a session of several outputs included.

What the trainer has before and after an update is built by hand; its methods, the queue and its storage are verl's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_toolrl.credit import gdpo_advantages
from verl_toolrl.integrations.lost_sessions import take_lost
from verl_toolrl.integrations.reward_info import reward_info
from verl_toolrl.rewards import Reward
from verl_toolrl.rewards.watch import Watcher

pytestmark = pytest.mark.timeout(300)

# uid, session, output, policy tokens, and (format, correctness), which verl copies from a session's last output to the
# others.
ROWS: list[tuple[str, int, int, int, tuple[float, float]]] = [
    ("a", 0, 0, 3, (1.0, 3.0)),
    ("a", 1, 0, 5, (0.0, 3.0)),
    ("a", 1, 1, 4, (0.0, 3.0)),
    ("a", 2, 0, 2, (0.0, -3.0)),
    ("b", 0, 0, 6, (1.0, 0.5)),
    ("b", 1, 0, 1, (1.0, 0.5)),
    ("b", 2, 0, 4, (1.0, 0.5)),
]
SESSION_OF_ROW = [0, 1, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
        yield
        tq.close()
    finally:
        ray.shutdown()


def info_of(parts: tuple[float, float]) -> dict[str, float]:
    result = Reward(sum(parts), {"format": parts[0], "correctness": parts[1]})
    text = "<think> a </think>\n<response> b </response>"
    return reward_info(result, result, Watcher()(response=text, ground_truth=text))


def put_rows(partition: str) -> Any:
    """Store the rows as verl's agent loop does, padded by verl to a multiple of four."""
    fields, keys, tags = [], [], []
    for uid, session, output, tokens, parts in ROWS:
        ones = torch.ones(tokens, dtype=torch.int64)
        scores = torch.zeros(tokens)
        scores[-1] = sum(parts)
        fields.append(
            {
                "uid": uid,
                "prompts": torch.ones(2, dtype=torch.int64),
                "responses": ones,
                "input_ids": torch.ones(2 + tokens, dtype=torch.int64),
                "position_ids": torch.arange(2 + tokens),
                "response_mask": ones,
                "loss_mask": ones,
                "rm_scores": scores,
                "rollout_log_probs": torch.zeros(tokens),
                "old_log_probs": torch.zeros(tokens),
                "num_turns": 2,
                "extra_fields": {"reward_extra_info": info_of(parts)},
            }
        )
        keys.append(f"{uid}_{session}_{output}")
        tags.append({"min_global_steps": 0, "max_global_steps": 0, "global_steps": 1})
    tq.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(fields), tags=tags)
    batch = tq.KVBatchMeta(keys=keys, tags=tags, partition_id=partition)
    return upsample_batch_to_divisible_size(batch, 4, eos_token_id=0)


def trainer(**algorithm: Any) -> Any:
    """A trainer of ours with its configuration and nothing else: no workers, no model."""
    made = object.__new__(get_trainer_cls("toolrl_sync"))
    made.config = OmegaConf.create(
        {
            "algorithm": {"gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False, **algorithm},
            "actor_rollout_ref": {"rollout": {"n": 3}},
        }
    )
    return made


def advantages_of(batch: Any) -> list[list[float]]:
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
    return [row.tolist() for row in data["advantages"].unbind()]


def test_advantages_arrive_at_every_output_and_padding_stays_out(queue: None) -> None:
    batch = put_rows("gdpo")
    assert 8 == len(batch.keys) and batch.tags[-1]["is_padding"]
    made = trainer(adv_estimator="toolrl_gdpo", toolrl={"weights": {"format": 1.0, "correctness": 2.0}})
    made._compute_advantage(batch, {})
    sessions = torch.tensor([ROWS[SESSION_OF_ROW.index(session)][4] for session in range(6)])
    expect = gdpo_advantages(sessions, torch.tensor([0, 0, 0, 1, 1, 1]), weights=[1.0, 2.0]).float().tolist()
    found = advantages_of(batch)
    for row, (values, session) in enumerate(zip(found, SESSION_OF_ROW)):
        assert values == pytest.approx([expect[session]] * ROWS[row][3], abs=1e-6)
    assert expect[3:] == [0.0] * 3  # the group whose responses scored alike
    assert [0.0] == found[-1]


def test_without_a_component_of_that_name_the_step_fails_with_those_there_are(queue: None) -> None:
    batch = put_rows("wrong")
    made = trainer(adv_estimator="toolrl_gdpo", toolrl={"components": ["accuracy"]})
    with pytest.raises(ValueError, match="it has: format, correctness"):
        made._compute_advantage(batch, {})


def test_other_estimators_are_verls_business(queue: None) -> None:
    batch = put_rows("grpo")
    trainer(adv_estimator="grpo")._compute_advantage(batch, {})
    found = advantages_of(batch)
    # Sums of group a: 4, 3, -3; mean 4/3, unbiased std 3.786.
    assert found[0][0] == pytest.approx((4 - 4 / 3) / 3.7859, abs=1e-3) and found[1] == pytest.approx([found[2][0]] * 5)


def test_the_log_has_what_is_watched_and_leaves_padding_out(queue: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = put_rows("log")
    made = trainer(adv_estimator="toolrl_gdpo")
    # verl's own metrics need tensors of a whole step; the rollout's have tests of their own.
    monkeypatch.setattr(get_trainer_cls("sync"), "_compute_metrics", lambda *_: None)
    monkeypatch.setitem(made.__dict__, "_watch", SimpleNamespace(after_step=lambda *_: {}))
    metrics: dict[str, float] = {}
    made._compute_metrics(batch, metrics, {}, 1, 0)
    # A session of two outputs counts once.
    assert metrics["reward/correctness/mean"] == pytest.approx((3 + 3 - 3 + 0.5 * 3) / 6)
    assert (1.0, 0.0, 4 / 6) == tuple(metrics[f"reward/format/{kind}"] for kind in ("max", "min", "mean"))
    # Of two groups one scored alike.
    assert (2.0, 0.5, 0.0) == tuple(metrics[f"groups/{name}"] for name in ("count", "zero_variance", "lone"))
    assert {"reward/acc/mean", "reward/layout/mean", "calls/missed/mean", "thought/words/mean"} <= set(metrics)


def test_a_step_reads_what_is_large_once(queue: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = put_rows("once")
    made = trainer(adv_estimator="toolrl_gdpo")
    monkeypatch.setattr(get_trainer_cls("sync"), "_compute_metrics", lambda *_: None)
    monkeypatch.setitem(made.__dict__, "_watch", SimpleNamespace(after_step=lambda *_: {}))
    read: list[str] = []
    get = tq.kv_batch_get

    def counted(keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        read.extend(keys if "extra_fields" in select_fields else [])
        return get(keys=keys, partition_id=partition_id, select_fields=select_fields)

    monkeypatch.setattr(tq, "kv_batch_get", counted)
    made._compute_advantage(batch, {})
    made._compute_metrics(batch, {}, {}, 1, 0)
    last = [f"{uid}_{session}_{output}" for uid, session, output, *_ in ROWS if (uid, session, output) != ("a", 1, 0)]
    assert sorted(last) == sorted(read)
    made._compute_advantage(batch, {})  # the next step keeps nothing of this one
    assert 2 * len(last) == len(read)


@ray.remote(num_cpus=0)
class RewardWorker:
    """A process in which nobody has attached TransferQueue, as verl's reward workers are."""

    async def score(self, reward: str) -> None:
        from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

        optim = {"optim": {"total_training_steps": 4}}
        config = {"reward": {"reward_kwargs": {"reward": reward}}, "actor_rollout_ref": {"actor": optim}}
        tokenizer = SimpleNamespace(decode=lambda *_, **__: "")
        manager = get_reward_manager_cls("toolrl")(config=OmegaConf.create(config), tokenizer=tokenizer)
        row = {"uid": "u", "session_id": 1, "global_steps": 3, "response_len": 0, "reward_model": {"ground_truth": ""}}
        columns = {key: np.fromiter([value], dtype=object, count=1) for key, value in row.items()}
        await manager.run_single(
            DataProto(TensorDict({"responses": torch.zeros(1, 1, dtype=torch.int64)}, batch_size=1), columns)
        )


def test_a_mistake_in_a_reward_reaches_the_trainer_from_the_rewards_own_process(queue: None, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def score(*, response):\n    return {}['answer']\n")
    with pytest.raises(KeyError):
        ray.get(RewardWorker.remote().score.remote(f"{tmp_path / 'own.py'}:score"))
    assert {"u_1": ("the reward raised KeyError: 'answer'", "author")} == {
        session: (tag["reason"], tag["kind"]) for session, tag in take_lost().items()
    }
