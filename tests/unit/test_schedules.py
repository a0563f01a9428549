"""The language of schedules: values at steps, and what it refuses."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError
from verl_toolrl.rewards.schedules import parse_schedule

# (schedule, step, total steps, value)
VALUES = [
    (2, 7, None, 2.0),
    ("0.5", 7, None, 0.5),
    ("constant(-1e-1)", 7, None, -0.1),
    ("step(1 @ 0, 0.5 @ 30)", 29, None, 1.0),
    ("step(1 @ 0, 0.5 @ 30)", 30, None, 0.5),
    ("step(1 @ 10, 0.5 @ 30)", 0, None, 1.0),  # before the first position the first value holds
    ("step(0 @ 0%, 1 @ 50%)", 49, 100, 0.0),
    ("step(0 @ 0%, 1 @ 50%)", 50, 100, 1.0),
    ("linear(2 -> 1)", 25, 100, 1.75),
    ("linear(384 -> 640, 0 -> 105)", 105, None, 640.0),
    ("linear(384 -> 640, 0 -> 105)", 400, None, 640.0),  # behind the last position the last value holds
    ("linear(0 -> 1, 20% -> 60%)", 40, 100, 0.5),
    ("cosine(1 -> 0, 0 -> 100)", 50, None, 0.5),
    ("cosine(1 -> 0, 0 -> 100)", 25, None, (1 + math.cos(math.pi / 4)) / 2),
]


@pytest.mark.parametrize(("text", "step", "total", "expected"), VALUES)
def test_a_schedule_has_its_value_at_a_step(text: object, step: int, total: int | None, expected: float) -> None:
    schedule = pickle.loads(pickle.dumps(parse_schedule(text)))
    assert math.isclose(expected, schedule.at(step, total), abs_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linaer(1 -> 2)", "did you mean 'linear'"),
        ("linear(1, 2)", "wanted linear"),
        ("linear(1 -> 2, 10 -> 5)", "the end must lie behind the begin"),
        ("linear(1 -> 2, 0 -> 50%)", "both positions in steps or both in percent"),
        ("linear(1 -> 2, 0% -> 150%)", "inside the run"),
        ("step(1 @ 5, 2 @ 5)", "positions must rise"),
        ("step(1)", "wanted value @ position"),
        ("1e999", "must be finite"),
        (float("nan"), "must be finite"),
        (True, "wanted a number or a schedule, got True"),
        (None, "got None"),
        ("", "is no schedule"),
    ],
)
def test_what_is_no_schedule_raises_with_the_place(text: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_schedule(text, "weights.format")
    assert "weights.format" in str(caught.value)


def test_a_step_outside_the_run_and_a_missing_length_raise() -> None:
    schedule = parse_schedule("linear(0 -> 1)")
    with pytest.raises(ConfigError, match="step 101 lies outside the run of 100 steps"):
        schedule.at(101, 100)
    with pytest.raises(ConfigError, match="needs its length"):
        schedule.at(1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(["linear", "cosine"]), st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 300))
def test_a_ramp_stays_between_its_ends(kind: str, first: float, last: float, step: int) -> None:
    schedule = parse_schedule(f"{kind}({first:.6f} -> {last:.6f}, 10 -> 200)")
    low, high = schedule.bounds
    assert low - 1e-9 <= schedule.at(step) <= high + 1e-9
