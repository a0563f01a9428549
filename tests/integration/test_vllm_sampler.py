"""Tokens of seeded requests on the CPU: drawn from the same probabilities as vLLM's, repeatable, whatever the batch."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("vllm", reason="needs vLLM")

import torch
from scipy.stats import chisquare
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from verl_toolrl.integrations.cpu import vllm_sampler


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> TopKTopPSampler:
    """A sampler of vLLM with the replacement, which is taken back after the test."""
    monkeypatch.setattr(TopKTopPSampler, "forward_cpu", TopKTopPSampler.forward_cpu)
    vllm_sampler.register()
    return TopKTopPSampler(logprobs_mode="processed_logprobs")


def generators(count: int, seed: int = 0) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(seed + row) for row in range(count)}


def test_tokens_follow_the_probabilities(sampler: TopKTopPSampler) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf"), 0.5])
    rows = 20_000
    tokens, _ = sampler.forward(logits.repeat(rows, 1), generators(rows), None, None)
    counts = torch.bincount(tokens, minlength=6).double()
    expected = logits.softmax(-1).double() * rows
    assert counts[4] == 0
    possible = expected > 0
    observed, wanted = counts[possible].numpy(), expected[possible].numpy()
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def test_a_row_gets_the_same_token_alone_and_in_a_batch(sampler: TopKTopPSampler) -> None:
    logits = torch.randn(7, 50_000, generator=torch.Generator().manual_seed(3))
    together, _ = sampler.forward(logits.clone(), generators(7), None, None)
    alone = [
        int(sampler.forward(logits[row : row + 1].clone(), {0: torch.Generator().manual_seed(row)}, None, None)[0])
        for row in range(7)
    ]
    assert together.tolist() == alone


def test_log_probs_and_top_k_are_those_of_vllm(sampler: TopKTopPSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, k = torch.randn(5, 100, generator=torch.Generator().manual_seed(4)), torch.full((5,), 3)
    tokens, log_probs = sampler.forward(logits.clone(), generators(5), k, None)
    _, of_vllm = TopKTopPSampler.forward_cpu.__wrapped__(sampler, logits.clone(), generators(5), k, None)
    assert torch.equal(log_probs, of_vllm)
    assert torch.isfinite(log_probs.gather(1, tokens[:, None])).all()


def test_requests_without_a_seed_are_left_to_vllm(sampler: TopKTopPSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sampler, "draw", None)  # calling it would raise
    monkeypatch.setattr(
        "vllm.v1.sample.ops.topk_topp_sampler.compiled_random_sample", lambda logits: logits.argmax(dim=-1)
    )
    logits = torch.eye(3)
    assert sampler.forward(logits, {0: torch.Generator()}, None, None)[0].tolist() == [0, 1, 2]
