"""The CPU's policy engine computes what verl's own computes, on the tokens that a loss reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import torch
from tensordict import TensorDict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

from verl_toolrl.integrations.cpu.attention import _by_products
from verl_toolrl.integrations.cpu.engines import CPUEngineWithLMHead

PROMPTS, RESPONSES = (5, 3, 9, 5, 5), (4, 6, 1, 7, 2)
"""Lengths of the rows: 0, 3 and 4 are a group that shares its prompt; row 1 has the shortest, row 2 the longest one."""


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=53,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


def micro_batch(mask: str, temperature: float) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 53, (p + r,), generator=generator) for p, r in zip(PROMPTS, RESPONSES)]
    for index in (3, 4):
        rows[index][: PROMPTS[index]] = rows[0][: PROMPTS[0]]
    masks = [torch.ones(r) if mask == "response" else torch.cat([torch.zeros(p), torch.ones(r)])
             for p, r in zip(PROMPTS, RESPONSES)]  # fmt: skip
    data = TensorDict(
        {
            "input_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged),
            "position_ids": torch.nested.as_nested_tensor(
                [torch.arange(len(row)) for row in rows], layout=torch.jagged
            ),
            "loss_mask": torch.nested.as_nested_tensor(masks, layout=torch.jagged),
        },
        batch_size=len(rows),
    )
    tu.assign_non_tensor(data, use_remove_padding=False, calculate_entropy=True, temperature=temperature)
    return data


def run(engine_class: type[FSDPEngineWithLMHead], data: TensorDict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probs and entropies of the response tokens, and the gradient of their sum with respect to the
    embedding.
    """
    engine = object.__new__(engine_class)
    engine.module, engine.pad_to_length, engine.use_ulysses_sp = tiny_model(), False, False
    engine.engine_config = type("Config", (), {"entropy_checkpointing": False})()
    inputs, args = engine.prepare_model_inputs(data)
    output = engine.prepare_model_outputs(engine.module(**inputs, use_cache=False), args, data, None)

    def responses(nested: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[p - 1 : p + r - 1] for row, p, r in zip(nested.unbind(), PROMPTS, RESPONSES)])

    log_probs, entropy = responses(output["log_probs"]), responses(output["entropy"])
    (log_probs.sum() + entropy.sum()).backward()
    gradient = engine.module.model.embed_tokens.weight.grad
    assert gradient is not None
    return log_probs.detach(), entropy.detach(), gradient


def prepared() -> tuple[CPUEngineWithLMHead, dict[str, Any]]:
    """An engine with the tiny model, and that model's inputs for one micro batch."""
    engine = object.__new__(CPUEngineWithLMHead)
    engine.module = tiny_model()
    inputs, _ = engine.prepare_model_inputs(micro_batch("response", 1.0))
    return engine, inputs


def forbidden(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the slow form of attention")


@pytest.mark.parametrize("mask", ["response", "whole sequence"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_log_probs_entropy_and_gradient_equal_those_of_verls_engine(mask: str, temperature: float) -> None:
    expected = run(FSDPEngineWithLMHead, micro_batch(mask, temperature))
    actual = run(CPUEngineWithLMHead, micro_batch(mask, temperature))
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_shared_prompt_is_computed_once_and_gets_no_logits() -> None:
    engine, inputs = prepared()
    # Three sequences: the group with 5 + 4 + 7 + 2 tokens, and rows of 9 and 10.
    assert (3, 18) == tuple(inputs["input_ids"].shape)
    logits = engine.module(**inputs, use_cache=False).logits
    assert (sum(RESPONSES), 53) == tuple(logits.shape)
    # A forward pass that is not the engine's gets them all.
    engine._logits_wanted = None
    assert (3, 18, 53) == tuple(engine.module(**inputs, use_cache=False).logits.shape)


def test_fsdp_hands_the_blocks_to_attention_that_computes_no_full_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, inputs = prepared()
    expected = engine.module(**inputs, use_cache=False).logits

    monkeypatch.setattr("verl_toolrl.integrations.cpu.attention.sdpa_attention_forward", forbidden)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        precision = MixedPrecisionPolicy(param_dtype=torch.float32, cast_forward_inputs=True)
        for layer in engine.module.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(engine.module, mesh=mesh, mp_policy=precision)
        torch.testing.assert_close(engine.module(**inputs, use_cache=False).logits, expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_products_is_scaled_dot_product_attention(causal: bool) -> None:
    mask = None if causal else torch.ones(40, 60, dtype=torch.bool).tril(20)

    def attend(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(0)
        keys = 40 if causal else 60
        query, key, value = (torch.randn(1, 3, n, 64).to(dtype).requires_grad_() for n in (40, keys, keys))
        output = function(query, key, value, attn_mask=mask, is_causal=causal, scale=0.1)
        output.square().sum().backward()
        return [output, query.grad, key.grad, value.grad]

    theirs = torch.nn.functional.scaled_dot_product_attention
    for actual, expected in zip(attend(_by_products, torch.float32), attend(theirs, torch.float32)):
        torch.testing.assert_close(actual, expected)
    # In bfloat16, which it is for, it rounds the scores too: output and gradients were 1.2 to 1.7 times as far off.
    for actual, peer, truth in zip(
        attend(_by_products, torch.bfloat16), attend(theirs, torch.bfloat16), attend(theirs, torch.float32)
    ):
        assert (actual - truth).abs().mean() <= 2 * (peer - truth).abs().mean()


def test_a_shared_prompt_in_bfloat16_takes_the_path_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inputs = prepared()
    expected = engine.module(**inputs, use_cache=False).logits

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", forbidden)
    actual = engine.module.bfloat16()(**inputs, use_cache=False).logits
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=0.05)


def test_a_row_that_trains_nothing_is_computed_without_harm() -> None:
    """verl fills a batch up with rows whose mask is 0."""
    data = micro_batch("response", 1.0)
    masks = [mask * 0 if index == 2 else mask for index, mask in enumerate(data["loss_mask"].unbind())]
    data["loss_mask"] = torch.nested.as_nested_tensor(masks, layout=torch.jagged)
    log_probs, entropy, gradient = run(CPUEngineWithLMHead, data)
    assert log_probs.isfinite().all() and entropy.isfinite().all() and gradient.isfinite().all()


def update(engine_class: type[FSDPEngineWithLMHead], idle: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Return loss, metrics and gradient of a forward and a backward pass; the advantages of `idle` rows are 0."""
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=5, ppo_micro_batch_size_per_gpu=5, use_dynamic_bsz=False,
        optim=FSDPOptimizerConfig(lr=1e-3), **options,
    )  # fmt: skip
    data = micro_batch("response", 1.0)
    generator = torch.Generator().manual_seed(2)

    def per_token(make: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([make(i, r) for i, r in enumerate(RESPONSES)], layout=torch.jagged)

    rows = data["input_ids"].unbind()
    data["prompts"] = torch.nested.as_nested_tensor([r[:p] for r, p in zip(rows, PROMPTS)], layout=torch.jagged)
    data["responses"] = torch.nested.as_nested_tensor([r[p:] for r, p in zip(rows, PROMPTS)], layout=torch.jagged)
    data["response_mask"] = per_token(lambda _, r: torch.ones(r))
    data["old_log_probs"] = per_token(lambda _, r: -torch.rand(r, generator=generator) - 3)
    data["advantages"] = per_token(lambda i, r: torch.full((r,), 0.0 if i in idle else (-1.0) ** i * (i + 1)))
    data["ref_log_prob"] = data["old_log_probs"]
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=sum(RESPONSES), global_batch_size=5)
    tu.assign_non_tensor(data, calculate_entropy=config.entropy_coeff > 0)
    engine = object.__new__(engine_class)
    engine.module, engine.pad_to_length, engine.use_ulysses_sp = tiny_model(), False, False
    engine.engine_config = type("Config", (), {"entropy_checkpointing": False})()
    engine._autocast_dtype = torch.float32
    engine.get_data_parallel_group = lambda: None
    computed = 0

    def count(module: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        nonlocal computed
        computed += inputs["input_ids"].numel()

    engine.module.register_forward_pre_hook(count, with_kwargs=True)
    loss, _ = engine.forward_step(data, loss_function=partial(ppo_loss, config=config), forward_only=False)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in engine.module.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "computed": computed}


@pytest.mark.parametrize("idle", [(), (1,), (0, 3, 4), (0, 2), (0, 1, 2, 3, 4)])
def test_rows_without_advantage_change_no_gradient_and_are_not_computed(idle: tuple[int, ...]) -> None:
    expected, actual = update(FSDPEngineWithLMHead, idle), update(CPUEngineWithLMHead, idle)
    torch.testing.assert_close(actual["loss"], expected["loss"], atol=1e-6, rtol=1e-5)
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(actual["gradients"][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    if idle:
        assert actual["computed"] < update(CPUEngineWithLMHead, ())["computed"]
    if len(idle) == len(RESPONSES):
        assert 1 == actual["computed"]
        assert not any(gradient.any() for gradient in actual["gradients"].values())


@pytest.mark.parametrize(
    "options", [{"entropy_coeff": 0.1}, {"use_kl_loss": True}, {"policy_loss": {"loss_mode": "gpg"}}]
)
def test_rows_without_advantage_are_computed_where_the_loss_may_need_them(options: dict[str, Any]) -> None:
    all_rows = update(CPUEngineWithLMHead, (), **options)["computed"]
    assert all_rows == update(CPUEngineWithLMHead, (0, 3, 4), **options)["computed"]
