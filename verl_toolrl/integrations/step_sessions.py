"""What TransferQueue holds of the sessions of a step beside their tensors, read once.

Estimators, metrics and the log of trajectories look at the same fields, of which the recorded trajectories are large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta

from verl_toolrl.integrations.session_keys import last_outputs

__all__ = ["StepSession", "StepSessions"]


@dataclass(frozen=True)
class StepSession:
    """One session of a step, by its last output."""

    group: str
    """uid of its prompt."""
    number: int
    """Which of the sessions of its prompt."""
    score: float
    """Sum of its rewards."""
    trained: int
    """Tokens of the output that are trained."""
    fields: Mapping[str, Any]
    """`extra_fields`."""
    tag: Mapping[str, Any]
    """verl's tag of the output."""

    @property
    def info(self) -> dict[str, Any] | None:
        """What the reward manager reported; None where it did not."""
        return _info(self.fields)


class StepSessions:
    """Reads the sessions of a step; padding is in none."""

    def __init__(self) -> None:
        self._fields: dict[str, Mapping[str, Any]] = {}

    def infos(self, batch: KVBatchMeta) -> list[dict[str, Any] | None]:
        """Return `reward_extra_info` of every row: of the last output of a session, None elsewhere."""
        rows = _last_rows(batch)
        self._read(batch, [batch.keys[row] for row in rows])
        infos: list[dict[str, Any] | None] = [None] * len(batch.keys)
        for row in rows:
            infos[row] = _info(self._fields[batch.keys[row]])
        return infos

    def take(self, batch: KVBatchMeta) -> list[StepSession]:
        """Return the sessions of a whole step and forget them."""
        rows = _last_rows(batch)
        keys = [batch.keys[row] for row in rows]
        self._read(batch, keys)
        fields, self._fields = self._fields, {}
        if not keys:
            return []
        # Not kept from before: rollout correction may have taken tokens out of the mask.
        small = ["rm_scores", "response_mask"]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=small)
        scores = [float(row.sum()) for row in data["rm_scores"].unbind()]
        trained = [int(row.sum()) for row in data["response_mask"].unbind()]
        found = []
        for row, key, score, count in zip(rows, keys, scores, trained):
            group, number, _ = key.rsplit("_", 2)
            found.append(StepSession(group, int(number), score, count, fields[key], batch.tags[row]))
        return found

    def _read(self, batch: KVBatchMeta, keys: list[str]) -> None:
        new = [key for key in keys if key not in self._fields]
        if not new:
            return
        data = tq.kv_batch_get(keys=new, partition_id=batch.partition_id, select_fields=["extra_fields"])
        # Depending on the storage the field is a list of dicts or of wrappers with the dict in `data`.
        for key, value in zip(new, list(data["extra_fields"])):
            self._fields[key] = getattr(value, "data", value)


def _last_rows(batch: KVBatchMeta) -> list[int]:
    rows = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
    return [rows[position] for position in last_outputs([batch.keys[row] for row in rows])]


def _info(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    info = fields.get("reward_extra_info")
    return None if info is None else dict(info)
