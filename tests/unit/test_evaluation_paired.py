"""Paired bootstrap intervals, pairing of two measurements, and how both are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from verl_toolrl.errors import ConfigError
from verl_toolrl.evaluation.curves import draw_curves
from verl_toolrl.evaluation.paired import bootstrap_interval, compare, pick_trajectories
from verl_toolrl.evaluation.result import Measurement, ScoredRow
from verl_toolrl.evaluation.scores import RowScore
from verl_toolrl.evaluation.tables import difference_table, score_table, show_value, trajectory_table


def test_of_zeros_and_ones_the_interval_is_that_of_the_binomial_distribution() -> None:
    """The mean of n resampled values of which a share p is 1 is Binomial(n, p) / n."""
    before, after = np.zeros(100), np.repeat([1.0, 0.0], [30, 70])
    low, high = bootstrap_interval(before, after, seed=3, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert np.abs(np.array([low, high]) - expected).max() <= 0.01  # one step of the distribution


def test_the_interval_is_that_of_scipy() -> None:
    generator = np.random.default_rng(5)
    before = generator.normal(size=200)
    after = before + generator.exponential(size=200) - 0.5
    found = bootstrap_interval(before, after, seed=1)
    peer = stats.bootstrap(
        (before, after),
        lambda x, y, axis: (y - x).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        random_state=np.random.default_rng(2),
    ).confidence_interval
    # Two draws of 10,000 resamples: a quantile is known to about 0.03 standard errors of the mean.
    error = np.std(after - before) / np.sqrt(200)
    assert np.abs(np.subtract(found, peer)).max() < 0.15 * error


def test_pairing_takes_out_how_hard_a_row_is() -> None:
    hard = np.linspace(-3, 3, 50)
    assert (0.5, 0.5) == pytest.approx(bootstrap_interval(hard, hard + 0.5))


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = np.arange(40) % 3, np.sqrt(np.arange(40))
    first = bootstrap_interval(before, after, seed=7)
    monkeypatch.setattr("verl_toolrl.evaluation.paired._BLOCK", 400)
    assert first == bootstrap_interval(before, after, seed=7) != bootstrap_interval(before, after, seed=8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=30))
def test_the_interval_lies_between_the_extremes_and_turns_with_the_sign(pairs: list[tuple[float, float]]) -> None:
    before, after = (np.array(column) for column in zip(*pairs))
    low, high = bootstrap_interval(before, after, resamples=100)
    differences = after - before
    assert differences.min() - 1e-9 <= low <= high <= differences.max() + 1e-9
    assert (-high, -low) == pytest.approx(bootstrap_interval(after, before, resamples=100), abs=1e-9)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_cannot_be_paired_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ConfigError, match="pairs are needed"):
        bootstrap_interval(before, after)


def scored(key: str, acc: float, correctness: float | None, source: str = "seen", text: str = "") -> ScoredRow:
    score = RowScore(1.0, correctness, acc, 1)
    return ScoredRow(key, source, f"question {key}", "truth", text or f"response {acc}", "stop", score)


def measurement(*rows: ScoredRow, model: str = "m") -> Measurement:
    return Measurement(model, "checkpoint", 9, rows=list(rows))


BEFORE = measurement(scored("a", 0, -3.0), scored("b", 0, 1.0), scored("c", 1, 3.0), scored("t", 0, None, "no_tool"))
AFTER = measurement(scored("c", 0, 1.5), scored("a", 1, 3.0), scored("b", 0, 1.0), scored("t", 1, None, "no_tool"))


def test_rows_are_paired_by_their_key_whatever_their_order() -> None:
    found = compare(BEFORE, AFTER)
    assert ["seen", "no_tool"] == list(found)
    correctness = found["seen"].metrics["correctness"]
    # Differences: a +6, b 0, c -1.5.
    assert (3, 1.5) == (correctness.rows, pytest.approx(correctness.difference))
    assert correctness.low < 1.5 < correctness.high
    assert "correctness" not in found["no_tool"].metrics
    assert (1.0, 1.0, 1.0) == (lambda d: (d.difference, d.low, d.high))(found["no_tool"].metrics["acc"])


def test_rows_that_only_one_has_are_left_out_and_counted() -> None:
    found = compare(measurement(*BEFORE.rows[:2]), AFTER)
    assert (2, 1) == (found["seen"].rows, found["seen"].left_out)
    assert "no_tool" not in found


def test_measurements_of_other_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="different rows"):
        compare(BEFORE, measurement(scored("z", 1, 3.0)))


def test_a_row_of_each_kind_is_picked_and_counted() -> None:
    picked = pick_trajectories(BEFORE, AFTER)
    assert [("better", "a", 2), ("same", "b", 1), ("worse", "c", 1)] == [
        (each.kind, each.after.key, each.rows_of_kind) for each in picked
    ]


def test_a_row_whose_response_changed_is_picked_before_one_that_stayed() -> None:
    before = measurement(scored("a", 0, 1.0), scored("b", 0, 1.0, text="old"))
    after = measurement(scored("a", 0, 1.0), scored("b", 0, 1.0, text="new"))
    assert ["b"] == [each.after.key for each in pick_trajectories(before, after)]


@pytest.mark.parametrize(
    ("metric", "value", "sign", "expected"),
    [
        ("acc", 0.625, False, "62.5 %"),
        ("acc", -0.0312, True, "-3.1"),
        ("correctness", 1.2, False, "+1.20"),
        ("correctness", None, False, ""),
    ],
)
def test_figures_are_shown_as(metric: str, value: float | None, sign: bool, expected: str) -> None:
    assert expected == show_value(metric, value, sign=sign)


def test_the_tables_name_sets_rows_and_intervals() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(score_table(AFTER))
    console.print(difference_table(compare(BEFORE, AFTER), title="held-out", before="warm-up", after="GRPO"))
    console.print(trajectory_table(pick_trajectories(BEFORE, AFTER)))
    text = console.export_text()
    for wanted in (
        "no_tool",
        "warm-up",
        "95 % paired bootstrap interval",
        "+1.50",
        "100.0 %",
        "question a",
        "better (2 rows)",
        "wanted",
    ):
        assert wanted in text


def test_curves_are_written_as_a_png(tmp_path: Path) -> None:
    draw_curves(
        tmp_path / "deep" / "curves.png",
        title="run",
        panels={"reward": {"reward": ([1, 2], [0.1, 0.4])}, "parts": {"a": ([1], [0.0]), "b": ([1], [1.0])}},
        sets=compare(BEFORE, AFTER),
        names=("before", "after"),
    )
    content = (tmp_path / "deep" / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
