"""verl's replay buffer, which tells the count of lost sessions about every prompt that is over.

Both ways in which a prompt ends are methods of verl's buffer that all its modes share: `_evict_terminal_groups` takes
failed prompts out before they are refilled, `_select_prompt_uids` chooses those that the trainer gets. What is above
`trainer.toolrl.max_lost_share` raises there: before verl refills, and before the synchronous buffer says that it
selected prompts without trajectories, which names no reason. An author's mistake in a session raises at the next look
for finished rollouts, whatever else runs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from transfer_queue import KVBatchMeta

from verl_toolrl.integrations.lost_sessions import PARTITION
from verl_toolrl.integrations.lost_share import LostShare
from verl_toolrl.integrations.session_keys import group_of, sessions_by_group

__all__ = ["WatchedBuffer", "watch_buffer"]

_Reasons = tuple[set[str], set[str], set[str], Counter[float]]


class WatchedBuffer:
    """Placed before a replay buffer of verl in the list of bases."""

    losses: LostShare
    _wanted = 0
    _counted = False
    _began = False

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Sample as verl does."""
        self._wanted, self._counted = batch_size, False
        batch, metrics = super().sample(  # type: ignore[misc]
            global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
        )
        if not self._counted:  # a custom sampler that selects in a way of its own
            known = list(sessions_by_group(batch.keys))
            self.losses.arrived(partition_id, [*known, *[""] * (batch_size - len(known))], batch.keys)
        return batch, metrics

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()  # type: ignore[misc]
        # verl lists every partition, ours of the sessions without a trajectory among them.
        self.losses.stop_at_mistake(self.partitions.get(PARTITION) or {})  # type: ignore[attr-defined]

    def _evict_terminal_groups(self, global_steps: int, partition_id: str, eviction_reasons: _Reasons) -> Any:
        failed = eviction_reasons[2]
        if failed:
            self.losses.failed(failed, max(self._wanted, self._prefetched(partition_id)))
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)  # type: ignore[misc]

    def _prefetched(self, partition_id: str) -> int:
        """Return how many other prompts were started before the first batch; 0 once it is there.

        The asynchronous trainers start several batches at once, of which those that fail end first.
        """
        if self._began:
            return 0
        states = (self.pending_keys, self.running_keys, self.finished_keys)  # type: ignore[attr-defined]
        return sum(len(keys[partition_id]) for keys in states)

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        self.losses.forget(uids)
        super()._clear_groups(partition_id, uids)  # type: ignore[misc]

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        selected = super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)  # type: ignore[misc]
        uids, snapshot, _ = selected
        chosen = set(uids)
        self._counted = True
        self._began = self._began or partition_id == "train"
        self.losses.arrived(partition_id, uids, [key for key in snapshot if group_of(key) in chosen])
        return selected


class WatchedBufferAsync(WatchedBuffer):
    """The same for a buffer that can be asked to wait, before a batch is sampled."""

    def wait_for_sampleable(self, global_steps: int, partition_id: str, target_count: int) -> Any:
        """Wait as verl does."""
        self._wanted = target_count
        return super().wait_for_sampleable(global_steps, partition_id, target_count)  # type: ignore[misc]


def watch_buffer(buffer: Any, losses: LostShare) -> None:
    """Make a buffer tell `losses` about its prompts.

    The class of the object is exchanged for a subclass of it: verl chooses and builds the buffer in one method, and
    what has to be seen is called by the buffer itself, which a wrapper around it would not see.
    """
    # verl asks whether a buffer can wait by looking for the method.
    watched = WatchedBufferAsync if hasattr(buffer, "wait_for_sampleable") else WatchedBuffer
    buffer.__class__ = type(f"Watched{type(buffer).__name__}", (watched, type(buffer)), {})
    buffer.losses = losses
