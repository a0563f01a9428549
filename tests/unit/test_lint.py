"""Reward lint: clean on `robust`, the known faults on `released`, and one planted fault of each kind found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.formats import DIALECTS
from verl_toolrl.rewards import make_reward
from verl_toolrl.rewards.lint import SAMPLE, LintReport, Row, lint_reward


def faults(report: LintReport) -> set[tuple[str, str]]:
    return set(report.findings)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_robust_is_clean_in_every_dialect(dialect: str) -> None:
    report = lint_reward(make_reward("toolrl", dialect=dialect), max_seconds=30)
    assert (set(), [], len(SAMPLE)) == (faults(report), report.unusable, report.rows)
    assert report.trials > 200


def test_tool_n1_is_clean() -> None:
    assert set() == faults(lint_reward(make_reward("tool_n1"), max_seconds=30))


def test_released_shows_its_known_faults() -> None:
    """A behaviour lock: verl_toolrl/rewards/README.md shows this report."""
    report = lint_reward(make_reward("toolrl", mode="released"), max_seconds=30)
    assert {
        ("pays", "right calls buried under junk calls"),
        ("pays", "junk pays more than silence"),
        ("pays", "a boolean for an integer"),
        ("pays", "an integer for a boolean"),
        ("pays", "calls echoed inside the thought"),
        ("pays", "an empty block"),
        ("pays", "prose inside a block"),
        ("pays", "a block of tags"),
        ("pays", "a call smuggled into the answer"),
        ("costs", "a tag mentioned in the thought"),
        ("costs", "pretty-printed JSON"),
        ("costs", "an empty line between the blocks"),
        ("costs", "a block for each call"),
        ("costs", "partly wrong calls in another order"),
    } == faults(report)


PLANTED = """
import math, time
from verl_toolrl.rewards import Reward, make_reward

robust = make_reward("toolrl")

def crash(response, ground_truth):
    return 1 / len(response)

def infinite(response, ground_truth):
    return Reward(math.inf if "\\x00" in response else 0.0, {"a": 0.0})

def keys(response, ground_truth):
    return {"a": 0.0} if response else {"b": 0.0}

def slow(response, ground_truth):
    time.sleep(0.05 * (len(response) > 100_000))
    return robust(response=response, ground_truth=ground_truth)

def longer(response, ground_truth):
    return min(len(response), 100_000)

state = []
def moody(response, ground_truth):
    state.append(0)
    return len(state) % 2

class Locked:
    def __init__(self):
        self.function = lambda: 0
    def __call__(self, *, response, ground_truth, tools=None, step=0, total_steps=None):
        return robust(response=response, ground_truth=ground_truth)
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("crash", "crash"),
        ("infinite", "non-finite"),
        ("keys", "keys"),
        ("slow", "slow"),
        ("longer", "pays"),
        ("moody", "not deterministic"),
        ("Locked", "not picklable"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    report = lint_reward(make_reward(f"{path}:{name}"), SAMPLE[:1], max_seconds=0.04 if name == "slow" else 30)
    assert kind in {found for found, _ in faults(report)}


def test_the_smallest_example_is_kept_and_the_rest_counted() -> None:
    report = lint_reward(make_reward("toolrl", mode="released"), max_seconds=30)
    finding = report.findings["pays", "an empty block"]
    assert (5, "<think> I think about it. </think>\n<tool_call>\n\n</tool_call>") == (finding.count, finding.response)


def test_a_row_that_cannot_be_read_is_named_and_not_attacked() -> None:
    report = lint_reward(make_reward("toolrl"), [Row("<tool_call>\n{bad}\n</tool_call>")])
    assert (0, 1) == (report.trials, len(report.unusable))


def test_robust_is_clean_on_the_authors_rows(shared: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(shared / "data" / "rlla_test.parquet").to_pylist()
    rows: list[Any] = [Row(row["reward_model"]["ground_truth"]) for row in table[:20]]
    assert set() == faults(lint_reward(make_reward("toolrl"), rows, max_seconds=30))
