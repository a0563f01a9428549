"""What the pure parts load: rewards no more than the standard library, credit no more than torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("verl_toolrl.rewards.steptool", ("torch", "numpy", "httpx", "orjson", "pydantic", "jsonschema_rs")),
        ("verl_toolrl.rewards.steptool_offline", ("torch", "numpy", "httpx")),
        ("verl_toolrl.cli.annotate", ("torch", "httpx", "verl_toolrl.rewards")),
        ("verl_toolrl.credit", ("verl", "ray", "vllm", "sglang", "transformers")),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "[]" == done.stdout.strip(), done.stderr
