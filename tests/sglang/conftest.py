"""A real SGLang on the CPU; run by `make test-sglang` in .venv-sglang, and left out where SGLang is not installed."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("VERL_PLATFORM", "cpu")

if importlib.util.find_spec("sglang") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from verl_toolrl.integrations.cpu import environment

    environment.install()
