"""Rows to Parquet, and what was made in numbers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_toolrl.data.world.make import World
from verl_toolrl.data.world.rows import count_words, prompt_length
from verl_toolrl.errors import ConfigError

__all__ = ["PERCENTILES", "split_numbers", "write_world"]

PERCENTILES = (0, 50, 95, 100)
_MANIFEST = "world.json"


def write_world(world: World, folder: Path) -> dict[str, Path]:
    """Write one Parquet file a split and `world.json`, which says what they were made of.

    The same world may be written again; nothing else is overwritten.

    Returns:
        Split -> file, for splits that have rows.

    Raises:
        ConfigError: If the folder holds anything else.
    """
    import pyarrow
    import pyarrow.parquet

    manifest = _manifest(world)
    _refuse_other_data(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.parquet" for split, rows in world.splits.items() if rows}
    for split, file in files.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(world.splits[split]), file)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return files


def _manifest(world: World) -> dict[str, Any]:
    spec = asdict(world.spec)
    spec["mix"] = {kind.value: share for kind, share in world.spec.mix.items()}
    rows = json.dumps(world.splits, sort_keys=True, ensure_ascii=True)
    made = {
        "spec": spec,
        "seen_tools": world.seen_tools,
        "unseen_tools": world.unseen_tools,
        "sha256": hashlib.sha256(rows.encode()).hexdigest(),
    }
    found: dict[str, Any] = json.loads(json.dumps(made))
    return found


def _refuse_other_data(folder: Path, manifest: Mapping[str, Any]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, wanted a folder")
    held = sorted(each.name for each in folder.iterdir())
    if not held:
        return
    try:
        other = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{folder}: holds other data ({', '.join(held[:4])}); name a new folder") from None
    if other != manifest:
        old, new = other.get("spec", {}), manifest["spec"]
        changed = [f"{key} {old.get(key)} there, {new[key]} here" for key in new if old.get(key) != new[key]]
        reason = "; ".join(changed) or "from other tools, or by another version"
        raise ConfigError(f"{folder}: holds rows made otherwise ({reason}); name a new folder")


def split_numbers(world: World, split: str, *, count_tokens: Callable[..., int] | None = None) -> dict[str, Any]:
    """Return what a split holds: rows, calls, parameters, kinds, tools, lengths of prompts by percentile.

    Args:
        world: The rows.
        split: Which of them.
        count_tokens: As for `make_world`; words are counted without it.
    """
    tasks, rows = world.tasks[split], world.splits[split]
    calls = [call for task in tasks for call in task.calls]
    measure = count_tokens or count_words
    lengths = sorted(prompt_length(row, measure) for row in rows)
    return {
        "rows": len(rows),
        "calls": len(calls),
        "parameters": sum(len(call.arguments) for call in calls),
        "kinds": dict(Counter(task.kind.value for task in tasks)),
        "tools": len({call.name for call in calls}),
        "new_wordings": sum(task.new_wording for task in tasks),
        "length_unit": "words" if count_tokens is None else "tokens",
        "prompt_length": {str(each): _percentile(lengths, each) for each in PERCENTILES} if lengths else {},
    }


def _percentile(ordered: Sequence[int], percent: int) -> int:
    """Return the smallest length that at least `percent` of the rows do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
