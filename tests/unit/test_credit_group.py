"""Critic-free estimators: plain references, invariances, and bias on decision processes with a known gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.credit import (
    Advantages,
    Steps,
    gigpo_advantages,
    mix_with_outcome,
    mt_grpo_advantages,
    outcome_advantages,
    return_to_go_advantages,
    step_gae,
    token_gae,
)
from verl_toolrl.errors import ConfigError, UnknownNameError

Rows = list[list[float]]


def layout(counts: list[int], max_steps: int | None = None, tokens: int = 2) -> Steps:
    """Steps of `tokens` policy tokens with one tool token between them; `max_steps` pads."""
    width = max_steps or max(counts, default=0)
    spans = torch.full((len(counts), width, 2), -1)
    mask = torch.zeros(len(counts), width * (tokens + 1), dtype=torch.int64)
    for row, count in enumerate(counts):
        for t in range(count):
            spans[row, t] = torch.tensor([t * (tokens + 1), t * (tokens + 1) + tokens])
            mask[row, t * (tokens + 1) : t * (tokens + 1) + tokens] = 1
    return Steps(spans, mask)


def table(rows: Rows, width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64).view(
        len(rows), width
    )


def by_step(found: torch.Tensor, counts: list[int]) -> Rows:
    """Read one value a step, after checking that its tokens agree and that tool tokens have none."""
    values = []
    for row, count in enumerate(counts):
        at = [found[row, 3 * t : 3 * t + 3] for t in range(count)]
        assert all(float(x[0]) == float(x[1]) and float(x[2]) == 0 for x in at)
        assert not found[row, 3 * count :].any()
        values.append([float(x[0]) for x in at])
    return values


def flat(rows: Rows) -> list[float]:
    return [value for row in rows for value in row]


# --- plain references: lists and loops, from the formulas in the module


def norm(value: float, others: list[float], baseline: str, normalise: str) -> float:
    """Compare a value with its set: itself and `others`."""
    everyone = [value, *others]
    if not others:
        return value / (1 + 1e-6) if normalise == "std" else value
    centre = sum(everyone) / len(everyone) if baseline == "mean" else sum(others) / len(others)
    if normalise == "none":
        return value - centre
    mean = sum(everyone) / len(everyone)
    std = math.sqrt(sum((x - mean) ** 2 for x in everyone) / (len(everyone) - 1))
    return (value - centre) / (std + 1e-6)


def to_go(row: list[float], gamma: float) -> list[float]:
    return [sum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))]


def plain_return_to_go(rows: Rows, group: list[int], gamma: float, baseline: str, normalise: str, lone: str) -> Rows:
    returns = [to_go(row, gamma) for row in rows]
    found = []
    for i, mine in enumerate(returns):
        peers = [returns[j] for j in range(len(rows)) if j != i and group[j] == group[i] and returns[j]]
        advantages = []
        for t, value in enumerate(mine):
            others = [peer[t] for peer in peers if len(peer) > t]
            if not others and lone == "zero":
                advantages.append(0.0)
                continue
            if not others and lone == "last_step":
                others = [peer[-1] for peer in peers]
            advantages.append(norm(value, others, baseline, normalise))
        found.append(advantages)
    return found


def plain_mt_grpo(rows: Rows, group: list[int], alpha: float, accumulate: bool, baseline: str, normalise: str) -> Rows:
    found = []
    for i, row in enumerate(rows):
        peers = [rows[j] for j in range(len(rows)) if j != i and group[j] == group[i] and rows[j]]
        if not row:
            found.append([])
            continue
        outcome = norm(row[-1], [peer[-1] for peer in peers], baseline, normalise)
        turns = [
            norm(row[t], [peer[t] for peer in peers if len(peer) - 1 > t], baseline, normalise)
            for t in range(len(row) - 1)
        ]
        turns = [sum(turns[t:]) if accumulate else turns[t] for t in range(len(turns))]
        found.append([*(turn + alpha * outcome for turn in turns), outcome])
    return found


def plain_gigpo(
    rows: Rows, group: list[int], states: list[list[int]], gamma: float, omega: float, baseline: str, normalise: str
) -> Rows:
    returns = [to_go(row, gamma) for row in rows]
    everywhere = [(j, u) for j, row in enumerate(rows) for u in range(len(row))]
    found = []
    for i, row in enumerate(rows):
        peers = [sum(rows[j]) for j in range(len(rows)) if j != i and group[j] == group[i] and rows[j]]
        advantages = []
        for t in range(len(row)):
            others = [
                returns[j][u]
                for j, u in everywhere
                if (j, u) != (i, t) and group[j] == group[i] and states[j][u] == states[i][t]
            ]
            step = norm(returns[i][t], others, baseline, normalise) if others else 0.0
            advantages.append(norm(sum(row), peers, baseline, normalise) + omega * step)
        found.append(advantages)
    return found


rows_of_a_batch = st.lists(st.lists(st.floats(-2, 2, width=32), max_size=5), min_size=1, max_size=7)
options = st.fixed_dictionaries(
    {"baseline": st.sampled_from(["mean", "leave_one_out"]), "normalise": st.sampled_from(["std", "none"])}
)
checked = settings(derandomize=True, deadline=None, max_examples=60)


def near(expect: Rows, found: Rows) -> None:
    assert flat(expect) == pytest.approx(flat(found), rel=1e-5, abs=1e-5)


@checked
@given(
    rows_of_a_batch, st.data(), options, st.sampled_from([1.0, 0.9, 0.0]), st.sampled_from(["last_step", "raw", "zero"])
)
def test_return_to_go_equals_the_plain_reference(
    rows: Rows, data: st.DataObject, chosen: dict[str, Any], gamma: float, lone: Any
) -> None:
    group = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    counts = [len(row) for row in rows]
    steps = layout(counts)
    found = return_to_go_advantages(
        table(rows, max(counts)), steps, torch.tensor(group), gamma=gamma, lone_step=lone, **chosen
    )
    near(plain_return_to_go(rows, group, gamma, lone=lone, **chosen), by_step(found.advantages, counts))
    near([to_go(row, gamma) for row in rows], by_step(found.returns, counts))


@checked
@given(rows_of_a_batch, st.data(), options, st.booleans())
def test_mt_grpo_equals_the_plain_reference(
    rows: Rows, data: st.DataObject, chosen: dict[str, Any], accumulate: bool
) -> None:
    group = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    counts = [len(row) for row in rows]
    found = mt_grpo_advantages(
        table(rows, max(counts)),
        layout(counts),
        torch.tensor(group),
        outcome_weight=0.7,
        accumulate=accumulate,
        **chosen,
    )
    near(plain_mt_grpo(rows, group, 0.7, accumulate, **chosen), by_step(found.advantages, counts))


@checked
@given(rows_of_a_batch, st.data(), options)
def test_gigpo_equals_the_plain_reference(rows: Rows, data: st.DataObject, chosen: dict[str, Any]) -> None:
    group = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    counts = [len(row) for row in rows]
    states = [data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for n in counts]
    padded = torch.tensor([[*row, *[-1] * (max(counts) - len(row))] for row in states], dtype=torch.int64)
    found = gigpo_advantages(
        table(rows, max(counts)),
        layout(counts),
        torch.tensor(group),
        padded.view(len(rows), -1),
        gamma=0.9,
        omega=0.5,
        **chosen,
    )
    near(plain_gigpo(rows, group, states, 0.9, 0.5, **chosen), by_step(found.advantages, counts))


# --- hand-made numbers


def test_a_step_is_compared_with_the_same_step_of_others() -> None:
    rows = [[1.0, 0.0], [0.0, 1.0, 2.0], [0.5]]
    # returns-to-go: 1, 0 / 3, 3, 2 / 0.5; all in one group.
    steps, group = layout([2, 3, 1]), torch.zeros(3, dtype=torch.int64)
    found = return_to_go_advantages(table(rows, 3), steps, group).advantages
    # step 0: 1 - (3 + .5)/2, 3 - .75, .5 - 2; step 1: 0 - 3, 3 - 0; step 2 is lone: 2 - (last 0 + last .5)/2.
    assert [[-0.75, -3.0], [2.25, 3.0, 1.75], [-1.5]] == by_step(found, [2, 3, 1])
    raw = return_to_go_advantages(table(rows, 3), steps, group, lone_step="raw").advantages
    assert 2.0 == by_step(raw, [2, 3, 1])[1][2]
    zero = return_to_go_advantages(table(rows, 3), steps, group, lone_step="zero").advantages
    assert 0.0 == by_step(zero, [2, 3, 1])[1][2]


def test_two_steps_of_mt_grpo_are_the_two_cases_of_the_paper() -> None:
    rows = [[1.0, 0.0], [0.0, 1.0]]
    found = mt_grpo_advantages(table(rows, 2), layout([2, 2]), torch.zeros(2, dtype=torch.int64), outcome_weight=0.5)
    # Two values 1 and 0: mean .5, std .7071, norm = +-.7071. First step: turn + .5 * outcome; second: outcome.
    a = math.sqrt(0.5)
    assert [a - 0.5 * a, -a, -a + 0.5 * a, a] == pytest.approx(flat(by_step(found.advantages, [2, 2])), abs=1e-5)


def test_mixtures_interpolate() -> None:
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0]]
    steps, group = layout([2, 2, 1]), torch.zeros(3, dtype=torch.int64)
    step = return_to_go_advantages(table(rows, 2), steps, group)
    outcome = outcome_advantages(table(rows, 2), steps, group)
    torch.testing.assert_close(mix_with_outcome(step, outcome, outcome_weight=0.0), step)
    torch.testing.assert_close(mix_with_outcome(step, outcome, outcome_weight=1.0), outcome)
    half = mix_with_outcome(step, outcome, outcome_weight=0.5).advantages
    torch.testing.assert_close(half, (step.advantages + outcome.advantages) / 2)
    with pytest.raises(ConfigError, match="outside"):
        mix_with_outcome(step, outcome, outcome_weight=1.5)


# --- invariances, for every estimator

BATCH = [[1.0, 0.0], [0.0, 1.0, 2.0], [0.5], [], [0.25, 0.5], [1.0, 1.0, 0.0]]
COUNTS = [len(row) for row in BATCH]
GROUP = [0, 0, 0, 0, 1, 1]
STATES = [[0, 1], [0, 1, 2], [0], [], [0, 1], [0, 0, 2]]


def states(rows: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


Estimator = Callable[[torch.Tensor, Steps, torch.Tensor, torch.Tensor], Advantages]
ESTIMATORS: dict[str, Estimator] = {
    "return_to_go": lambda r, s, g, x: return_to_go_advantages(r, s, g),
    "return_to_go std": lambda r, s, g, x: return_to_go_advantages(
        r, s, g, baseline="mean", normalise="std", gamma=0.9
    ),
    "mt_grpo": lambda r, s, g, x: mt_grpo_advantages(r, s, g),
    "gigpo": lambda r, s, g, x: gigpo_advantages(r, s, g, x),
    "outcome": lambda r, s, g, x: outcome_advantages(r, s, g),
}
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)


@every_estimator
def test_order_of_rows_changes_nothing(estimate: Estimator) -> None:
    expect = estimate(table(BATCH, 3), layout(COUNTS), torch.tensor(GROUP), states(STATES, 3))
    order = [3, 5, 1, 0, 4, 2]
    found = estimate(
        table([BATCH[i] for i in order], 3),
        layout([COUNTS[i] for i in order]),
        torch.tensor([GROUP[i] * 7 - 3 for i in order]),  # other numbers, the same groups
        states([STATES[i] for i in order], 3),
    )
    torch.testing.assert_close(found.advantages, expect.advantages[order])
    torch.testing.assert_close(found.returns, expect.returns[order])


@every_estimator
def test_padding_changes_nothing(estimate: Estimator) -> None:
    expect = estimate(table(BATCH, 3), layout(COUNTS), torch.tensor(GROUP), states(STATES, 3))
    found = estimate(table(BATCH, 5), layout(COUNTS, 5), torch.tensor(GROUP), states(STATES, 5))
    torch.testing.assert_close(found.advantages[:, : expect.advantages.shape[1]], expect.advantages)
    assert not found.advantages[:, expect.advantages.shape[1] :].any()


@every_estimator
def test_masked_tokens_get_zero(estimate: Estimator) -> None:
    steps = layout(COUNTS)
    steps.response_mask[1, 0] = 0  # a token of the model that is not to be trained
    found = estimate(table(BATCH, 3), steps, torch.tensor(GROUP), states(STATES, 3))
    assert not found.advantages[steps.response_mask == 0].any()
    assert found.advantages.isfinite().all()


@every_estimator
def test_a_session_counts_once_however_many_outputs_it_has(estimate: Estimator) -> None:
    """The first and second trajectory as one output each, and cut into two outputs after their first step."""
    whole = estimate(table(BATCH, 3), layout(COUNTS), torch.tensor(GROUP), states(STATES, 3))
    cut = [[1.0], [0.0], [0.0], [1.0, 2.0], *BATCH[2:]]
    cut_states = [[0], [1], [0], [1, 2], *STATES[2:]]
    session = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5])
    plain = layout([len(row) for row in cut], 3)
    found = estimate(
        table(cut, 3),
        Steps(plain.spans, plain.response_mask, session=session),
        torch.tensor([0, 0, *GROUP[1:2] * 2, *GROUP[2:]]),
        states(cut_states, 3),
    )
    parts = by_step(found.advantages, [len(row) for row in cut])
    expect = by_step(whole.advantages, COUNTS)
    assert flat(expect) == pytest.approx(flat([parts[0] + parts[1], parts[2] + parts[3], *parts[4:]]), abs=1e-6)


@every_estimator
def test_an_empty_batch_is_an_empty_answer(estimate: Estimator) -> None:
    found = estimate(torch.zeros(2, 0), layout([0, 0]), torch.tensor([0, 0]), torch.zeros(2, 0, dtype=torch.int64))
    assert found.advantages.shape == (2, 0)


def test_the_limits_of_gamma() -> None:
    steps, group = layout(COUNTS), torch.tensor(GROUP)
    now = return_to_go_advantages(table(BATCH, 3), steps, group, gamma=0.0).returns
    torch.testing.assert_close(now, steps.to_tokens(table(BATCH, 3)))
    all_of_it = return_to_go_advantages(table(BATCH, 3), steps, group, gamma=1.0).returns
    assert [sum(row) for row in BATCH if row] == pytest.approx([row[0] for row in by_step(all_of_it, COUNTS) if row])


def test_wrong_options_are_named() -> None:
    steps, group = layout([1]), torch.tensor([0])
    with pytest.raises(UnknownNameError, match="did you mean 'leave_one_out'"):
        return_to_go_advantages(table([[1.0]], 1), steps, group, baseline="leave_one")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="lone_step"):
        return_to_go_advantages(table([[1.0]], 1), steps, group, lone_step="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="group: shape"):
        return_to_go_advantages(table([[1.0]], 1), steps, torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="states: shape"):
        gigpo_advantages(table([[1.0]], 1), steps, group, torch.zeros(1, 2, dtype=torch.int64))
    two = Steps(layout([1, 1]).spans, layout([1, 1]).response_mask, session=torch.tensor([5, 5]))
    with pytest.raises(ConfigError, match="different values of group"):
        return_to_go_advantages(table([[1.0], [1.0]], 1), two, torch.tensor([0, 1]))


# --- bias. A process of at most three steps; at each the policy takes tool A, takes tool B, or stops and answers.
#
#   step 0: A earns .9, B earns .3, stop is right with .2    step 1: A .5, B .7, stop .6    step 2: stop .9 or .4
#
# The policy has a row of logits a step. J and its gradient are exact, by enumeration of the 11 trajectories.

TOOL_REWARDS = [[0.9, 0.3], [0.5, 0.7]]
ANSWERS = [[0.2], [0.6], [0.9, 0.4]]
LOGITS = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, 0.5], [-0.1, 0.6, -99.0]], dtype=torch.float64)


def all_trajectories() -> list[tuple[list[int], list[float]]]:
    """Return (actions, step rewards) of every trajectory; action 2 of steps 0 and 1 stops, step 2 answers 0 or 1."""
    found = [([2], [0.2])]
    for a in (0, 1):
        found.append(([a, 2], [TOOL_REWARDS[0][a], 0.6]))
        for b, c in itertools.product((0, 1), (0, 1)):
            found.append(([a, b, c], [TOOL_REWARDS[0][a], TOOL_REWARDS[1][b], ANSWERS[2][c]]))
    return found


def log_probs_of(actions: list[list[int]], logits: torch.Tensor) -> torch.Tensor:
    """`(rows, 3)` log-probability of each step's action, 0 on padding."""
    index = torch.tensor([[*row, *[0] * (3 - len(row))] for row in actions])
    taken = logits.log_softmax(-1).expand(len(actions), 3, 3).gather(2, index.unsqueeze(2)).squeeze(2)
    return taken * (torch.arange(3) < torch.tensor([[len(row)] for row in actions]))


def gradient_of_return() -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    known = all_trajectories()
    probability = log_probs_of([actions for actions, _ in known], logits).sum(1).exp()
    assert float(probability.detach().sum()) == pytest.approx(1.0)
    (probability * torch.tensor([sum(rewards) for _, rewards in known], dtype=torch.float64)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def loss_gradient(
    advantages: torch.Tensor, steps: Steps, actions: list[list[int]], weights: torch.Tensor
) -> torch.Tensor:
    """Gradient of `sum_rows w sum_tokens A log pi`: a sum over tokens, divided by no token count.

    The action's log-probability stands on the first of its step's two tokens, the second is certain.
    """
    logits = LOGITS.clone().requires_grad_()
    at_first = torch.zeros(advantages.shape, dtype=torch.float64)
    at_first[:, ::3] = 1
    taken = steps.to_tokens(torch.ones(len(actions), 3, dtype=torch.float64)) * at_first
    token_log_probs = torch.zeros(advantages.shape, dtype=torch.float64)
    token_log_probs[:, ::3] = log_probs_of(actions, logits)
    (weights.unsqueeze(1) * advantages * token_log_probs * taken).sum().backward()
    assert logits.grad is not None
    return logits.grad


def expected_gradient(estimate: Callable[[torch.Tensor, Steps, torch.Tensor], Advantages], size: int) -> torch.Tensor:
    """Expectation of the estimated gradient over *all* groups of `size` trajectories, exact."""
    known = all_trajectories()
    probability = log_probs_of([actions for actions, _ in known], LOGITS).sum(1).exp()
    groups = list(itertools.product(range(len(known)), repeat=size))
    members = [known[k] for group in groups for k in group]
    weight = probability[torch.tensor(groups)].prod(1).repeat_interleave(size) / size
    actions, rewards = [a for a, _ in members], [r for _, r in members]
    steps = layout([len(row) for row in rewards], 3)
    group = torch.arange(len(groups)).repeat_interleave(size)
    return loss_gradient(estimate(table(rewards, 3), steps, group).advantages, steps, actions, weight)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("lone", ["last_step", "raw"])
def test_the_expected_gradient_is_the_true_one(size: int, lone: Any) -> None:
    found = expected_gradient(lambda r, s, g: return_to_go_advantages(r, s, g, lone_step=lone), size)
    torch.testing.assert_close(found, gradient_of_return(), atol=1e-12, rtol=0)


def test_leave_one_out_outcomes_and_mixtures_are_unbiased_too() -> None:
    def outcome(r: torch.Tensor, s: Steps, g: torch.Tensor) -> Advantages:
        return outcome_advantages(r, s, g, baseline="leave_one_out", normalise="none")

    def mixture(r: torch.Tensor, s: Steps, g: torch.Tensor) -> Advantages:
        return mix_with_outcome(return_to_go_advantages(r, s, g), outcome(r, s, g), outcome_weight=0.3)

    for estimate in (outcome, mixture):
        torch.testing.assert_close(expected_gradient(estimate, 3), gradient_of_return(), atol=1e-12, rtol=0)


def test_the_naive_form_is_biased_by_the_expected_intermediate_reward() -> None:
    """Its expected gradient is the true one minus sum_l E[baseline_l] grad P(step l is not the last).

    Baseline l is the mean intermediate reward of the others that have an intermediate step l; it is 0 when none has.
    """
    size = 3
    found = expected_gradient(
        lambda r, s, g: mt_grpo_advantages(r, s, g, baseline="leave_one_out", normalise="none"), size
    )
    bias = found - gradient_of_return()
    known = all_trajectories()
    logits = LOGITS.clone().requires_grad_()
    probability = log_probs_of([actions for actions, _ in known], logits).sum(1).exp()
    hidden = torch.zeros((), dtype=torch.float64)
    for step in (0, 1):
        goes_on = torch.tensor([len(rewards) - 1 > step for _, rewards in known]).double()
        of_step = [rewards[step] if len(rewards) - 1 > step else 0.0 for _, rewards in known]
        reward = torch.tensor(of_step, dtype=torch.float64)
        p = probability @ goes_on
        baseline = (probability @ reward / p * (1 - (1 - p) ** (size - 1))).detach()
        hidden = hidden - baseline * p
    (predicted,) = torch.autograd.grad(hidden, logits)
    torch.testing.assert_close(bias, predicted, atol=1e-12, rtol=0)
    assert float(bias[0, 2]) > 0.05  # stopping at once is made to look better


def test_what_the_module_calls_biased_is_biased() -> None:
    true = gradient_of_return()
    for options in ({"lone_step": "zero"}, {"baseline": "mean"}, {"normalise": "std"}):
        found = expected_gradient(lambda r, s, g, o=options: return_to_go_advantages(r, s, g, **o), 3)
        assert float((found - true).abs().max()) > 1e-3, options
    # `mean` in groups that all reach a step only scales: step 0 by (n - 1) / n = 2/3.
    mean = expected_gradient(lambda r, s, g: return_to_go_advantages(r, s, g, baseline="mean"), 3)
    torch.testing.assert_close(mean[0], true[0] * 2 / 3, atol=1e-12, rtol=0)


def test_monte_carlo_shows_no_bias_and_shows_the_naive_form_s() -> None:
    """8,000 sampled groups of 4 with noisy rewards; deviations in standard errors of the mean over groups."""
    generator = torch.Generator().manual_seed(0)
    groups, size = 8_000, 4
    probability = LOGITS.softmax(-1)
    drawn = torch.multinomial(probability, groups * size, replacement=True, generator=generator)  # (3, rows)
    noise = 0.3 * torch.randn(3, groups * size, generator=generator, dtype=torch.float64)
    goes = torch.stack([torch.ones_like(drawn[0], dtype=torch.bool), drawn[0] != 2, (drawn[0] != 2) & (drawn[1] != 2)])
    counts = goes.sum(0)
    payoff = torch.tensor([[0.9, 0.3, 0.2], [0.5, 0.7, 0.6], [0.9, 0.4, 0.0]], dtype=torch.float64)
    rewards = ((payoff.gather(1, drawn) + noise) * goes).T
    spans = torch.tensor([[0, 2], [3, 5], [6, 8]]).expand(groups * size, 3, 2)
    spans = torch.where(goes.T.unsqueeze(2), spans, -1)
    mask = torch.tensor([1, 1, 0] * 3) * (torch.arange(9) // 3 < counts.unsqueeze(1))
    steps = Steps(spans, mask)
    group = torch.arange(groups).repeat_interleave(size)
    # grad log softmax = one-hot - probability, a step and action: exact per-row gradients without autograd.
    score = torch.nn.functional.one_hot(drawn.T, 3) - probability  # (rows, step, action)

    def deviation(found: Advantages) -> float:
        advantage = found.advantages[:, ::3].unsqueeze(2)
        per_group = (advantage * score).view(groups, size, 9).mean(1)
        error = per_group.mean(0) - gradient_of_return().flatten()
        standard = per_group.std(0) / math.sqrt(groups)
        return float((error / standard.clamp(min=1e-9)).abs().max())

    assert deviation(return_to_go_advantages(rewards, steps, group)) < 4  # 8 parameters move: 4 sigma is 1 in 2,000
    assert deviation(return_to_go_advantages(rewards, steps, group, lone_step="raw")) < 4
    naive = mt_grpo_advantages(rewards, steps, group, baseline="leave_one_out", normalise="none")
    assert deviation(naive) > 20


# --- devices


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    rewards, steps = table(BATCH, 3).float(), layout(COUNTS)
    there = Steps(steps.spans.cuda(), steps.response_mask.cuda())
    group, marks = torch.tensor(GROUP), states(STATES, 3)
    for estimate in ESTIMATORS.values():
        expect = estimate(rewards, steps, group, marks)
        found = estimate(rewards.cuda(), there, group.cuda(), marks.cuda())
        torch.testing.assert_close(found.advantages.cpu(), expect.advantages, atol=1e-5, rtol=1e-5)
    values = torch.randn(6, steps.response_mask.shape[1], generator=torch.Generator().manual_seed(0))
    for function in (
        lambda r, v, s: step_gae(r, v, s, gamma=0.99, lam=0.95),
        lambda r, v, s: token_gae(v, v, s.response_mask, gamma=0.99, lam=0.95),
    ):
        expect = function(rewards, values, steps)
        found = function(rewards.cuda(), values.cuda(), there)
        torch.testing.assert_close(found.advantages.cpu(), expect.advantages, atol=1e-5, rtol=1e-5)
