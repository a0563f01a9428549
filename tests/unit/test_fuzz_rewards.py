"""Twenty thousand mutated responses: no exception, finite, inside the bounds (the script does a million)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "fuzz_rewards.py"


def test_mutated_responses_never_break_a_reward() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_rewards", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [] == module.fuzz(20_000, seed=1)[:3]
