"""GDPO: the formulas on numbers worked out by hand, its limits, and what its options refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.credit import gdpo_advantages
from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.algorithm_options import GdpoOptions, algorithm_options

ROOT = math.sqrt(0.5)  # (0, 1) in a group of two: mean 1/2, unbiased std sqrt(1/2), so +-(1/2) / sqrt(1/2)


def advantages(components: list[list[float]], group: list[int], **options: Any) -> list[float]:
    return gdpo_advantages(torch.tensor(components), torch.tensor(group), **options).tolist()


def test_what_grpo_makes_equal_stays_apart() -> None:
    """Two prompts of two rollouts. The sums are (0, 1) and (0, 2), which GRPO normalises to the same pair."""
    components = [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    summed = [[sum(row)] for row in components]
    grpo = advantages(summed, [0, 0, 1, 1], batch_norm="none")
    assert grpo == pytest.approx([-ROOT, ROOT, -ROOT, ROOT], abs=1e-5)
    # One component moves in the first group, two in the second: A_sum is +-0.7071 and +-1.4142.
    found = advantages(components, [0, 0, 1, 1], batch_norm="none")
    assert found == pytest.approx([-ROOT, ROOT, -2 * ROOT, 2 * ROOT], abs=1e-5)


def test_the_batch_is_normalised_over_responses() -> None:
    # A_sum as above: mean 0, sum of squares 2 * 0.5 + 2 * 2 = 5, unbiased std sqrt(5 / 3).
    found = advantages([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]], [0, 0, 1, 1])
    std = math.sqrt(5 / 3)
    assert found == pytest.approx([-ROOT / std, ROOT / std, -2 * ROOT / std, 2 * ROOT / std], abs=1e-5)


def test_weights_scale_the_normalised_components() -> None:
    # Format moves only in the first group, correctness only in the second, each by +-ROOT before its weight.
    components = [[0.0, 3.0], [1.0, 3.0], [1.0, -3.0], [1.0, 3.0]]
    found = advantages(components, [0, 0, 1, 1], weights=[0.5, 2.0], batch_norm="none")
    assert found == pytest.approx([-0.5 * ROOT, 0.5 * ROOT, -2 * ROOT, 2 * ROOT], abs=1e-5)


def test_a_group_that_is_equal_in_everything_gets_exactly_nothing() -> None:
    found = advantages([[0.1, 2.7], [0.1, 2.7], [0.1, 2.7], [0.0, 1.0], [1.0, 0.5]], [4, 4, 4, 9, 9])
    assert found[:3] == [0.0, 0.0, 0.0]


def test_rounding_of_the_batch_mean_gives_equal_groups_nothing() -> None:
    # Sums of normalised thirds do not cancel to the last bit.
    components = [[1.0, 3.0], [0.0, 3.0], [0.0, -3.0], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5]]
    assert advantages(components, [0, 0, 0, 1, 1, 1], weights=[1.0, 2.0])[3:] == [0.0] * 3


def test_a_batch_that_is_equal_in_everything_gets_exactly_nothing() -> None:
    for norm in ("response", "token", "none"):
        tokens = torch.tensor([3, 9, 1, 4])
        assert advantages([[0.3]] * 4, [0, 0, 1, 1], batch_norm=norm, policy_tokens=tokens) == [0.0] * 4


def test_normalising_over_tokens_gives_equal_groups_an_advantage() -> None:
    """The released code's choice; this is why the paper's is the default."""
    components = [[0.0], [1.0], [1.0], [1.0]]
    tokens = torch.tensor([1, 9, 5, 5])
    assert advantages(components, [0, 0, 1, 1], batch_norm="response")[2:] == [0.0, 0.0]
    # Mean over tokens (-0.707 * 1 + 0.707 * 9) / 20 = 0.283, which the second group is below.
    assert advantages(components, [0, 0, 1, 1], batch_norm="token", policy_tokens=tokens)[2] < -0.4


@pytest.mark.parametrize(("lone", "expected"), [("raw", [2.0]), ("zero", [0.0])])
def test_a_session_without_siblings(lone: str, expected: list[float]) -> None:
    assert advantages([[2.0]], [0], batch_norm="none", lone=lone) == pytest.approx(expected, abs=1e-5)


rewards = st.lists(
    st.tuples(st.integers(0, 3), st.floats(-3, 3, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=24
)


@settings(deadline=None, max_examples=40)
@given(rewards, st.floats(0.25, 4.0), st.floats(-5, 5))
def test_the_scale_of_a_component_does_not_matter(rows: list[tuple[int, float, float]], by: float, plus: float) -> None:
    """What the paper decouples for: correctness in [-3, 3] or [-1, 1] is the same to GDPO."""
    # Differences near the 1e-6 that guard a division are not the subject.
    group = torch.tensor([row[0] for row in rows])
    values = (torch.tensor([row[1:] for row in rows], dtype=torch.float64) * 8).round() / 8
    moved = values * torch.tensor([by, 1.0]) + torch.tensor([plus, 0.0])
    first, second = (gdpo_advantages(x, group, batch_norm="none", lone="zero") for x in (values, moved))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(rewards, st.randoms())
def test_the_order_of_the_batch_does_not_matter(rows: list[tuple[int, float, float]], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    group, values = torch.tensor([row[0] for row in rows]), torch.tensor([row[1:] for row in rows])
    straight = gdpo_advantages(values, group)
    torch.testing.assert_close(gdpo_advantages(values[order], group[order]), straight[order], atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(rewards)
def test_a_batch_has_mean_zero_and_at_most_unit_spread(rows: list[tuple[int, float, float]]) -> None:
    found = gdpo_advantages(torch.tensor([row[1:] for row in rows]), torch.tensor([row[0] for row in rows]))
    assert abs(float(found.mean())) < 1e-6 and float(found.std()) <= 1 + 1e-6 and bool(torch.isfinite(found).all())


@pytest.mark.parametrize(
    ("components", "group", "options", "message"),
    [
        ([[1.0, 2.0]], [0], {"weights": [1.0]}, "1 weights for 2 components"),
        ([[1.0]], [0, 1], {}, r"shape \(2,\), wanted \(1,\)"),
        ([[float("nan")]], [0], {}, "component 0 of session 0"),
        ([[1.0], [2.0]], [0, 0], {"batch_norm": "batch"}, "known: none, response, token"),
        ([[1.0], [2.0]], [0, 0], {"batch_norm": "token"}, "needs policy_tokens"),
    ],
    ids=["weights", "group", "nan", "norm", "tokens"],
)
def test_what_does_not_fit_raises(components: Any, group: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        advantages(components, group, **options)


GDPO = {"adv_estimator": "toolrl_gdpo", "use_kl_in_reward": False}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (("format", "correctness", "length"), (1.0, 1.0, 1.0))),
        ({"components": ["correctness"]}, (("correctness",), (1.0,))),
        ({"components": ["format", "correctness"], "weights": [0.5, 2]}, (("format", "correctness"), (0.5, 2.0))),
        (
            {"components": ["format", "correctness"], "weights": {"correctness": 2, "format": 1}},
            (("format", "correctness"), (1.0, 2.0)),
        ),
    ],
    ids=["all", "one", "list", "names"],
)
def test_options_choose_components_and_weights(options: Any, expected: Any) -> None:
    read = algorithm_options({**GDPO, "toolrl": options}, {})
    assert isinstance(read, GdpoOptions)
    assert read.resolve(("format", "correctness", "length")) == expected


@pytest.mark.parametrize(
    ("algorithm", "reward_kwargs", "message"),
    [
        ({"toolrl": {"wieghts": [1]}}, {}, r"algorithm.toolrl.wieghts: unknown option .*did you mean 'weights'"),
        ({"toolrl": {"components": ["corectness"]}}, {}, "no component 'corectness', did you mean 'correctness'"),
        ({"toolrl": {"components": ["format"], "weights": [1, 1]}}, {}, "2 weights for 1 components"),
        ({"toolrl": {"weights": [1, 1]}}, {}, r"2 weights for 3 components \(format, correctness, length\)"),
        ({"toolrl": {"components": ["format", "correctness"], "weights": {"format": 1}}}, {}, "no weight for corr"),
        ({"toolrl": {"weights": {"fromat": 1}}}, {}, "'fromat' is no component .*did you mean 'format'"),
        ({"toolrl": {"weights": [1, -1, 1]}}, {}, "below 0"),
        ({"toolrl": {"weights": [0, 0, 0]}}, {}, "nothing would be learned"),
        ({"toolrl": {"weights": ["1", 1, 1]}}, {}, "must be a finite number, got '1'"),
        ({"toolrl": {"components": "format"}}, {}, "must be a list of names"),
        ({"toolrl": {"components": ["format", "format"]}}, {}, "each once"),
        ({"toolrl": {"batch_norm": "responses"}}, {}, "did you mean 'response'"),
        ({"use_kl_in_reward": True}, {}, "use_kl_loss=true"),
        ({"toolrl": {"components": ["format"]}}, {"reward": "tool_n1"}, "it has: correctness"),
        ({"adv_estimator": "grpo", "toolrl": {"weights": [1]}}, {}, "nothing reads it with .*grpo"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:20],
)
def test_what_an_author_writes_wrong_is_said_before_a_run(algorithm: Any, reward_kwargs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithm_options({**GDPO, **algorithm}, reward_kwargs)


def test_components_of_a_user_s_reward_are_checked_when_they_are_known() -> None:
    read = algorithm_options({**GDPO, "toolrl": {"components": ["polite"]}}, None)
    assert isinstance(read, GdpoOptions)
    with pytest.raises(ConfigError, match="did you mean 'polite'|it has: correct"):
        read.resolve(("correct",))
