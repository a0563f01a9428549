"""Spans, and rewards on tokens: the released vectors, what conserves the reward, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.credit import (
    Steps,
    anchor_states,
    group_ids,
    kl_penalty,
    pad_steps,
    place_final_reward,
    place_step_rewards,
    released_logprob_masks,
    released_token_rewards,
    spans_from_mask,
    split_session_rewards,
    step_weights,
)
from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.trajectory import Outcome, Step, ToolCall, ToolResult, Trajectory


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "vectors" / "steptool.json").read_text())


def test_released_placement_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["A_step_reward_placement"]:
        given_, expect = case["input"], case["expect"]
        log_probs = None if given_["logprobs"] is None else torch.tensor(given_["logprobs"])
        ref = None if given_["ref_logprobs"] is None else torch.tensor(given_["ref_logprobs"])
        found = released_token_rewards(
            given_["mask"],
            given_["scores"],
            log_probs=log_probs,
            ref_log_probs=ref,
            kl_coef=given_["kl_coef"],
            penalty=given_["kl_penalty"],
        )
        assert expect["released_token_rewards"] == pytest.approx(found.token_rewards.tolist(), abs=1e-6), case["name"]
        masked = (found.token_rewards * torch.tensor(given_["mask"])).tolist()
        assert expect["released_token_rewards_after_mask"] == pytest.approx(masked, abs=1e-6)
        assert expect["kl"] == pytest.approx(found.kl.tolist(), abs=1e-6)
        assert expect["step_weights"] == found.step_weights
        assert expect["step_token_index"] == found.step_token_index
        paper = released_token_rewards(given_["mask"], given_["scores"], scheme="paper").token_rewards.tolist()
        assert expect["paper_token_rewards_no_kl"] == pytest.approx(paper, abs=1e-6)


def test_released_batches_and_the_outcome_only_form_repeat_the_vectors(vectors: dict[str, Any]) -> None:
    batch = vectors["A_batch"]
    for mask, scores, expect in zip(batch["masks"], batch["scores"], batch["expect"]):
        assert expect == pytest.approx(released_token_rewards(mask, scores).token_rewards.tolist())
    final = vectors["A_trl_final_reward_baseline"]
    found = place_final_reward(torch.tensor(final["scores"]), torch.tensor(final["masks"]))
    assert final["expect"] == found.tolist()


def test_the_released_mask_shift_repeats_the_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["B_frag_mask_to_logprob_mask"]:
        assert case["expect"]["masks"] == released_logprob_masks(case["input"]["frag_masks"]).tolist(), case["name"]


def test_kl_is_charged_on_every_position() -> None:
    log_probs, ref = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    found = released_token_rewards([0, 1, 1], [1.0, 1.0], log_probs=log_probs, ref_log_probs=ref, kl_coef=0.1)
    # d = 0.5, -1, 0; one run takes the last score with weight 0.
    assert [-0.05, 0.1, 0.0] == pytest.approx(found.token_rewards.tolist())


@pytest.mark.parametrize(
    ("penalty", "expect"), [("kl", [0.5, -1.0]), ("abs", [0.5, 1.0]), ("mse", [0.125, 0.5])], ids=["kl", "abs", "mse"]
)
def test_kl_penalties(penalty: Any, expect: list[float]) -> None:
    found = kl_penalty(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]), penalty)
    assert expect == pytest.approx(found.tolist())


def test_the_full_kl_is_that_of_the_distributions() -> None:
    p, q = (torch.tensor(logits, dtype=torch.float64).log_softmax(-1) for logits in ([[0.0, 1.0]], [[1.0, 0.5]]))
    expect = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_penalty(p, q, "full"), expect)


# responses:     | 0 1 2 | t t | 5 6 | t |  pad
SPANS = torch.tensor([[[0, 3], [5, 7], [-1, -1]], [[1, 2], [2, 4], [6, 8]]])
MASK = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0, 1, 1]])
REWARDS = torch.tensor([[0.5, 1.0, 0.0], [0.25, 0.5, 1.0]])


@pytest.mark.parametrize(
    ("scheme", "expect"),
    [
        ("paper", [[0, 0, 0.5, 0, 0, 0, 1.0, 0], [0, 0.25, 0, 0.5, 0, 0, 0, 1.0]]),
        ("robust", [[0, 0, 0.5, 0, 0, 0, 1.0, 0], [0, 0.25, 0, 0.5, 0, 0, 0, 1.0]]),
        # T - 1 - i: weights 1, 0 and 2, 1, 0.
        ("released", [[0, 0, 0.5, 0, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0, 0, 0, 0]]),
    ],
)
def test_rewards_stand_on_the_last_token_of_their_step(scheme: Any, expect: list[list[float]]) -> None:
    found = place_step_rewards(REWARDS, Steps(SPANS, MASK), scheme=scheme)
    assert torch.equal(torch.tensor(expect), found)


def test_adjacent_steps_keep_their_own_rewards() -> None:
    """Recorded spans know what runs of the mask do not: row 1 has steps [1, 2) and [2, 4), one run."""
    with pytest.warns(UserWarning, match="runs of response_mask"):
        spans = spans_from_mask(MASK)
    assert [[[0, 3], [5, 7]], [[1, 4], [6, 8]]] == spans.tolist()


def test_robust_conserves_what_paper_loses_on_masked_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]])
    #  row 0: step 0 = [0, 2) has no trained token, step 1 = [2, 5) ends on a masked one, step 2 = [5, 5) is empty.
    spans = torch.tensor([[[0, 2], [2, 5], [5, 5]], [[0, 2], [4, 5], [6, 7]]])
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    steps = Steps(spans, mask)
    robust = place_step_rewards(rewards, steps, scheme="robust")
    assert [[0, 0, 0, 7, 0, 0, 0, 0], [0, 0, 0, 0, 7, 0, 0, 0]] == robust.tolist()
    paper = place_step_rewards(rewards, steps, scheme="paper")
    assert [[0, 1, 0, 0, 2, 0, 0, 0], [0, 1, 0, 0, 2, 0, 4, 0]] == paper.tolist()
    assert [0.0, 2.0] == (paper * mask).sum(1).tolist()  # what an estimator sees of 7.0


def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, spans and mask of a small batch, with gaps, empty steps and masked tokens inside steps."""
    rows = draw(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5), min_size=1, max_size=4))
    spans, length = [], 1
    for row in rows:
        at, places = 0, []
        for gap, size in row:
            places.append((at + gap, at + gap + size))
            at += gap + size
        spans.append(places)
        length = max(length, at)
    rewards = [[draw(st.floats(-2, 2, width=32)) for _ in row] for row in spans]
    step_rewards, offsets = pad_steps(rewards, spans)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, places in enumerate(spans):
        for start, end in places:
            for t in range(start, end):
                mask[row, t] = draw(st.sampled_from([1, 1, 1, 0]))
    return step_rewards, offsets, mask


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.composite(batches)())
def test_placement_equals_the_plain_rule_and_robust_conserves(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    rewards, spans, mask = batch
    steps = Steps(spans, mask)
    robust = place_step_rewards(rewards, steps, scheme="robust")
    assert not robust[mask == 0].any()
    in_a_step = steps.to_tokens(torch.ones_like(rewards)).sum(1) > 0
    torch.testing.assert_close(robust.sum(1), rewards.sum(1) * in_a_step)
    for scheme in ("paper", "released"):
        expect = torch.zeros(mask.shape)
        for row in range(len(rewards)):
            count = int((spans[row, :, 0] >= 0).sum())
            for i in range(count):
                start, end = spans[row, i].tolist()
                if end > start:
                    expect[row, end - 1] += rewards[row, i] * (count - 1 - i if scheme == "released" else 1)
        torch.testing.assert_close(place_step_rewards(rewards, steps, scheme=scheme), expect)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.composite(batches)())
def test_step_values_reach_exactly_the_policy_tokens_of_their_step(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    values, spans, mask = batch
    expect = torch.zeros(mask.shape)
    for row in range(len(values)):
        for i, (start, end) in enumerate(spans[row].tolist()):
            if start >= 0:
                expect[row, start:end] = values[row, i]
    assert torch.equal(expect * mask, Steps(spans, mask).to_tokens(values))


def test_policy_tokens_that_no_step_covers_are_counted() -> None:
    assert 0 == Steps(SPANS, MASK).uncovered_tokens()
    assert 2 + 4 == Steps(SPANS[:, :1], MASK).uncovered_tokens()  # row 0 loses [5, 7), row 1 [2, 4) and [6, 8)


def test_runs_of_a_mask_are_read_as_spans() -> None:
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert [[[0, 1], [2, 4]], [[-1, -1], [-1, -1]], [[0, 4], [-1, -1]]] == spans_from_mask(mask, warn=False).tolist()


@pytest.mark.parametrize(
    ("spans", "match"),
    [
        ([[0, 3], [2, 5]], r"row 1, step 1: span \[2, 5\] overlaps"),
        ([[4, 5], [0, 3]], "step 1.*out of order"),
        ([[0, 3], [5, 9]], r"step 1: span \[5, 9\] leaves the response of 8 tokens"),
        ([[3, 1], [-1, -1]], "ends before it starts"),
        ([[-1, -1], [0, 3]], "step 1.*follows padding"),
        ([[0, -1], [-1, -1]], "half padding"),
    ],
    ids=["overlap", "order", "too long", "backwards", "after padding", "half"],
)
def test_wrong_spans_are_named(spans: list[list[int]], match: str) -> None:
    good = [[0, 1], [1, 2]]
    with pytest.raises(ConfigError, match=match):
        Steps(torch.tensor([good, spans]), torch.ones(2, 8))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ConfigError, match="spans: torch.float32"):
        Steps(torch.zeros(1, 2, 2), torch.ones(1, 8))
    with pytest.raises(ConfigError, match=r"wanted integers of shape \(2, max_steps, 2\)"):
        Steps(torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(2, 8))
    with pytest.raises(ConfigError, match="session"):
        Steps(SPANS, MASK, session=torch.tensor([0]))
    with pytest.raises(ConfigError, match="values: shape"):
        Steps(SPANS, MASK).first_values(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("rewards", "match"),
    [
        ([[0.5, 1.0, 2.0], [0.0, 0.0, 0.0]], "row 0, step 2: has a reward, but the row has no such step"),
        ([[0.5, float("nan"), 0.0], [0.0, 0.0, 0.0]], "row 0, step 1: has no finite reward"),
        ([[0.5, 1.0], [0.0, 0.0]], r"step_rewards: shape \(2, 2\)"),
    ],
    ids=["more", "fewer", "shape"],
)
def test_fewer_or_more_rewards_than_steps_are_named(rewards: list[list[float]], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        place_step_rewards(torch.tensor(rewards), Steps(SPANS, MASK))


def test_lists_are_padded_and_checked() -> None:
    rewards, spans = pad_steps([[0.5, 1.0], [0.25, 0.5, 1.0]], [[(0, 3), (5, 7)], [(1, 2), (2, 4), (6, 8)]])
    assert torch.equal(REWARDS, rewards)
    assert torch.equal(SPANS, spans)
    with pytest.raises(ConfigError, match="row 1: 1 rewards for 2 steps"):
        pad_steps([[1.0], [1.0]], [[(0, 1)], [(0, 1), (2, 3)]])
    with pytest.raises(ConfigError, match="row 0, step 1: no span"):
        pad_steps([[1.0, 1.0]], [[(0, 1), None]])


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'released'"):
        place_step_rewards(REWARDS, Steps(SPANS, MASK), scheme="release")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="KL penalty"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="come together"):
        released_token_rewards([1], [1.0], log_probs=torch.zeros(1))


def test_the_final_reward_of_a_session_counts_once() -> None:
    """One session of three steps in two outputs: the rewards are dealt, T of `released` is the session's."""
    dealt = split_session_rewards([0.5, 0.25, 1.0], [2, 1])
    assert [[0.5, 0.25], [1.0]] == dealt
    rewards, spans = pad_steps(dealt, [[(0, 2), (3, 4)], [(0, 2)]])
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]])
    session = torch.tensor([7, 7])
    steps = Steps(spans, mask, session=session)
    paper = place_step_rewards(rewards, steps, scheme="paper")
    assert [[0, 0.5, 0, 0.25], [0, 1.0, 0, 0]] == paper.tolist()
    released = place_step_rewards(rewards, steps, scheme="released")
    assert [[0, 1.0, 0, 0.25], [0, 0, 0, 0]] == released.tolist()  # weights 2, 1, 0
    with pytest.raises(ConfigError, match="3 step rewards for 2 steps in 2 outputs"):
        split_session_rewards([1, 2, 3], [1, 1])


def test_weights_sum_as_said() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert [[2, 1, 0], [0, 0, 0]] == step_weights(mask, "released").tolist()
    assert [[1, 1, 1], [1, 0, 0]] == step_weights(mask, "paper").tolist()


def test_groups_are_numbered_by_first_appearance() -> None:
    assert [0, 1, 0, 2] == group_ids(["b", "a", "b", "c"]).tolist()


def test_anchor_states_are_equal_where_the_tools_answered_the_same() -> None:
    def steps(*answers: str) -> Trajectory:
        made = [Step("", (ToolCall("f"),), (ToolResult(Outcome.OK, answer),)) for answer in answers]
        return Trajectory((*made, Step("done")))

    found = [steps("x", "y"), steps("x", "z"), steps("q", "y"), steps()]
    # The state before a step is what the tools answered last: start, x, y / start, x, z / start, q, y / start.
    assert [[0, 1, 2], [0, 1, 3], [0, 4, 2], [0, -1, -1]] == anchor_states(found).tolist()
    # With the history, "y after x" is not "y after q".
    assert [[0, 1, 2], [0, 1, 3], [0, 4, 5], [0, -1, -1]] == anchor_states(found, key="history").tolist()
    with pytest.raises(UnknownNameError, match="anchor states"):
        anchor_states(found, key="text")  # type: ignore[arg-type]
