"""The seed of a session, for all agent loops of ours alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from verl_toolrl.integrations.rollout_engine import request_seed

__all__ = ["session_seed"]


def session_seed(sampling_params: Mapping[str, Any], rollout: DictConfig, row: Mapping[str, Any]) -> int | None:
    """Return the seed of one session, None where nothing is drawn by chance.

    Args:
        sampling_params: Of the run.
        rollout: `actor_rollout_ref.rollout` of the configuration.
        row: What verl hands to an agent loop: columns of the row, `session_id` and `global_steps`.
    """
    if not sampling_params.get("temperature", 1.0) > 0:
        return None
    extra_info = row.get("extra_info")
    index = (extra_info if isinstance(extra_info, Mapping) else {}).get("index", row.get("index"))
    return request_seed(
        seed=int(rollout.get("seed") or 0),
        step=int(row.get("global_steps", 0) or 0),
        row=[str(index), [dict(message) for message in row["raw_prompt"]]],
        session=int(row.get("session_id", 0)),
    )
