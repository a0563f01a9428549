"""What verl's own replay buffers tell the count of lost sessions, over a TransferQueue of two dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

import numpy as np
import torch
import transfer_queue
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.tensordict_utils import get_tensordict

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.integrations.lost_sessions import PARTITION
from verl_toolrl.integrations.lost_share import AnnouncingManager, LostShare
from verl_toolrl.integrations.watched_buffer import watch_buffer

N = 4


class Queue:
    """The part of TransferQueue that a replay buffer uses: keys and tags of each partition."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, dict[str, Any]]] = {"train": {}, "val": {}, PARTITION: {}}

    def kv_list(self, partition_id: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        names = self.tags if partition_id is None else [partition_id]
        return {name: dict(self.tags[name]) for name in names}

    def kv_clear(self, keys: Sequence[str], partition_id: str) -> None:
        for key in keys:
            self.tags[partition_id].pop(key, None)

    def put(self, uid: str, sessions: Sequence[int], status: str, partition: str = "train", of: int = N) -> None:
        """Put a prompt that is over, with the trajectories of these sessions, and a reason for each of the others."""
        into = self.tags[partition]
        into[uid] = {"is_prompt": True, "status": status, "global_steps": 1}
        into.update({f"{uid}_{number}_0": {"seq_len": 4} for number in sessions})
        for number in set(range(of)) - set(sessions):
            self.tags[PARTITION][f"{uid}_{number}"] = {"reason": f"no server for {partition}"}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    for name in ("kv_list", "kv_clear"):
        monkeypatch.setattr(transfer_queue, name, getattr(made, name))
    return made


class Refill:
    """verl's `refill_fn`: puts a prompt in the place of each that failed, with as many sessions as it is told."""

    def __init__(self, queue: Queue, survivors: Sequence[int] = ()) -> None:
        self.queue, self.survivors, self.count = queue, survivors, 0

    def __call__(self, prompts: int) -> None:
        for _ in range(prompts):
            self.count += 1
            assert self.count < 50, "refilled for ever"
            self.queue.put(f"new{self.count}", self.survivors, "finished" if self.survivors else "failure")


def buffer(kind: type, limit: float = 0.3, refill: Any = None, **more: Any) -> Any:
    mode = "colocate_async" if kind is ReplayBufferAsync else "sync"
    made = kind(
        mode,
        OmegaConf.create({}),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
        poll_interval=0.0,
        refill_fn=refill,
        **more,
    )
    watch_buffer(made, LostShare((N, 2), limit))
    return made


def sample(made: Any, prompts: int, partition: str = "train") -> KVBatchMeta:
    batch, _ = made.sample(global_steps=1, partition_id=partition, batch_size=prompts)
    assert isinstance(batch, KVBatchMeta)
    return batch


REFILLING = [
    pytest.param(ReplayBufferAsync, {}, id="async"),
    pytest.param(ReplayBuffer, {"sync_refill_failed_groups": True, "gen_batch_size": 1}, id="sync that refills"),
]


@pytest.mark.parametrize(("kind", "more"), REFILLING)
def test_an_outage_of_everything_stops_the_run_with_its_reasons(queue: Queue, kind: type, more: dict[str, Any]) -> None:
    refill = Refill(queue)
    made = buffer(kind, refill=refill, **more)
    refill(4)
    # 4 of 4 prompts failed while 4 were wanted: half of the sessions is above 0.3.
    with pytest.raises(InfrastructureError, match=r"16 of 32 sessions are lost .*16 x no server for train"):
        sample(made, 4)


@pytest.mark.parametrize(("kind", "more"), REFILLING)
def test_a_prompt_that_failed_is_counted_and_then_refilled(queue: Queue, kind: type, more: dict[str, Any]) -> None:
    refill = Refill(queue, survivors=range(N))
    made = buffer(kind, refill=refill, **more)
    for uid in "abc":
        queue.put(uid, range(N), "finished")
    queue.put("d", [], "failure")
    batch = sample(made, 4)
    assert {"a", "b", "c", "new1"} == {key.split("_")[0] for key in batch.keys}
    assert (4, 20) == (made.losses.step.lost, made.losses.step.expected)


def test_a_trickle_of_failed_prompts_adds_up_until_the_batch_is_there(queue: Queue) -> None:
    made = buffer(ReplayBufferAsync, refill=Refill(queue, survivors=[0, 1, 2]))
    queue.put("a", [], "failure")  # 4 of 4 + 16
    for uid in "bcd":
        queue.put(uid, [0, 1, 2], "finished")  # with the new one another 4 of 16
    with pytest.raises(InfrastructureError, match="8 of 20 sessions are lost"):
        sample(made, 4)


def test_the_first_failures_are_measured_by_all_that_was_started_at_once(queue: Queue) -> None:
    made = buffer(ReplayBufferAsync, refill=Refill(queue, survivors=range(N)))
    for number in range(8):
        queue.put(f"first{number}", range(N), "finished")
    for uid in "ab":  # 1 in 5 of what was started, half of what a batch of 2 has
        queue.put(uid, [], "failure")
    sample(made, 2)
    for uid in "cd":
        queue.put(uid, [], "failure")
    with pytest.raises(InfrastructureError, match="8 of 16 sessions are lost"):
        sample(made, 2)


def test_waiting_for_more_than_a_batch_measures_by_what_is_waited_for(queue: Queue) -> None:
    made = buffer(ReplayBufferAsync, refill=Refill(queue, survivors=range(N)))
    queue.put("first", range(N), "finished")
    sample(made, 1)
    for uid in "ab":
        queue.put(uid, [], "failure")
    # 8 lost sessions are 1 in 5 of the 8 prompts' and their own, but half of two prompts'.
    for number in range(6):
        queue.put(f"ready{number}", range(N), "finished")
    made.wait_for_sampleable(1, "train", 8)
    assert 2 * N == len(sample(made, 2).keys)


def test_without_refill_a_batch_without_trajectories_gives_our_report(queue: Queue) -> None:
    made = buffer(ReplayBuffer, limit=1.0)  # however much may be lost
    for uid in "ab":
        queue.put(uid, [], "failure")
    with pytest.raises(InfrastructureError, match=r"this step: 8 of 8 sessions .*8 x no server for train"):
        sample(made, 2)


def test_lost_sessions_of_a_batch_count_prompts_without_any(queue: Queue) -> None:
    made = buffer(ReplayBuffer, limit=0.5)
    queue.put("a", range(N), "finished")
    queue.put("b", [0, 2], "finished")
    queue.put("c", [], "failure")
    assert 6 == len(sample(made, 3).keys)
    assert (6, 12) == (made.losses.step.lost, made.losses.step.expected)


def test_a_row_that_asks_for_its_own_number_of_sessions_gets_it(queue: Queue) -> None:
    made = buffer(ReplayBuffer, limit=0.2)
    started: list[Any] = []
    manager = AnnouncingManager(
        type("Manager", (), {"generate_sequences": lambda _, batch: started.append(batch)})(), made.losses
    )
    uids = np.array(["a", "b"], dtype=object)
    for counts in (torch.tensor([2, 6]), np.array([2, 6], dtype=object)):
        manager.generate_sequences(get_tensordict({"uid": uids, "__rollout_n__": counts}))
        queue.put("a", range(2), "finished", of=2)
        queue.put("b", range(5), "finished", of=6)
        sample(made, 2)
        assert (1, 8) == (made.losses.step.lost, made.losses.step.expected)
        made.losses.clear("train")
    assert 2 == len(started)


def test_a_sampler_with_a_selection_of_its_own_is_counted_by_its_batch(queue: Queue) -> None:
    class Custom(ReplayBuffer):
        def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
            return KVBatchMeta(keys=["a_0_0", "a_1_0"], tags=[{}, {}], partition_id=partition_id), {}

    made = buffer(Custom, limit=1.0)
    sample(made, 2)
    assert (6, 8) == (made.losses.step.lost, made.losses.step.expected)


def test_a_validation_takes_its_own_reasons_and_leaves_those_of_training(queue: Queue) -> None:
    made = buffer(ReplayBufferAsync)
    queue.put("t", [0], "running")
    queue.put("v", [0], "finished", partition="val", of=2)
    queue.put("w", [0, 1], "finished", partition="val", of=2)
    sample(made, 2, "val")
    assert (1, 4) == (made.losses.validation.lost, made.losses.validation.expected)
    assert "1 x no server for val" in made.losses.report("val", 1, 4)
    assert {"t_1", "t_2", "t_3"} == set(queue.tags[PARTITION])
    assert 0 == made.losses.step.expected


def test_a_validation_without_a_trajectory_stops_the_run(queue: Queue) -> None:
    made = buffer(ReplayBuffer, limit=1.0)
    queue.put("v", [], "failure", partition="val", of=2)
    with pytest.raises(InfrastructureError, match="validation: 2 of 2 sessions are lost .*2 x no server for val"):
        sample(made, 1, "val")


@pytest.mark.parametrize(("kind", "waits"), [(ReplayBuffer, False), (ReplayBufferAsync, True)])
def test_verl_still_sees_which_buffers_can_wait(queue: Queue, kind: type, waits: bool) -> None:
    made = buffer(kind)
    assert isinstance(made, kind) and waits == hasattr(made, "wait_for_sampleable")
