"""What this package costs at start: `python tests/benchmarks/bench_import.py`.

Each statement runs in fresh processes, alternating, and the best of several rounds counts. The goals: `import
verl_toolrl` under 0.3 s, and our share of `import verl`, which every process of a run pays, under 0.3 s. (A share near
zero may come out negative: the rounds differ by more.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

START = "start of Python"
CASES: dict[str, tuple[str, dict[str, str]]] = {
    START: ("pass", {}),
    "import verl_toolrl": ("import verl_toolrl", {}),
    "verl-toolrl --help": ("import verl_toolrl.cli", {}),
    "import verl, without plugins": ("import verl", {"VERL_USE_EXTERNAL_PLUGINS": "none"}),
    "import verl, with ours": ("import verl", {"VERL_USE_EXTERNAL_PLUGINS": "toolrl"}),
}


def seconds(statement: str, environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-c", statement]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    best = dict.fromkeys(CASES, float("inf"))
    for _ in range(rounds):
        for name, (statement, environment) in CASES.items():
            best[name] = min(best[name], seconds(statement, environment))
    table = Table("what", "seconds", "beyond the start of Python")
    for name, value in best.items():
        table.add_row(name, f"{value:.3f}", f"{value - best[START]:.3f}")
    without, with_ours = best["import verl, without plugins"], best["import verl, with ours"]
    table.add_row("our share of import verl", f"{with_ours - without:.3f}", f"ratio {with_ours / without:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
