"""verl's FSDP engines on the device `cpu`: the policy with the logits of the response alone, the value model without
flash-attention.

Both take part in verl's engine registry and change nothing of what is computed for the loss.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from transformers import AutoModelForTokenClassification
from verl.utils import tensordict_utils as tu
from verl.utils.torch_dtypes import PrecisionType
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

__all__ = ["CPUEngineWithLMHead", "CPUEngineWithValueHead"]


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithLMHead(FSDPEngineWithLMHead):
    """The policy. Logits are computed from the first token that the loss looks at.

    verl computes them for prompt and padding too and takes their log-softmax token by token. With 550 prompt tokens,
    110 response tokens and a vocabulary of 49,152 that is most of the memory and a third of the time. GPU kernels hide
    it. The prompt's part of the result, which no loss reads, is 0 here.
    """

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        if self._can_skip_prompt(micro_batch):
            start = _first_position(micro_batch)
            model_inputs["logits_to_keep"] = model_inputs["input_ids"].shape[1] - start
            output_args["first_position"] = start
            output_args["padded_input_ids"] = model_inputs["input_ids"]
        return model_inputs, output_args

    def _can_skip_prompt(self, micro_batch: TensorDict) -> bool:
        needs_all = ("use_remove_padding", "use_fused_kernels", "distillation_use_topk", "calculate_sum_pi_squared")
        return (
            "loss_mask" in micro_batch
            and "logits_to_keep" in inspect.signature(self.module.forward).parameters
            and not any(tu.get_non_tensor_data(data=micro_batch, key=key, default=False) for key in needs_all)
        )

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Return `log_probs` and, where asked for, `entropy`: nested, `(batch, prompt + response)`, as verl's engine
        does.
        """
        if "first_position" not in output_args:
            result: dict[str, torch.Tensor] = super().prepare_model_outputs(
                output, output_args, micro_batch, logits_processor_func
            )
            return result
        start, input_ids = output_args["first_position"], output_args["padded_input_ids"]
        logits = output.logits.float()  # (batch, kept, vocabulary)
        if not output_args["temperature_is_one"]:
            logits = logits / output_args["temperature"].clamp(min=1e-8)[:, None, None]
        # Position t predicts token t + 1; the last position predicts nothing and gets any label.
        labels = F.pad(input_ids, (0, 1))[:, start + 1 :]
        log_probs = -F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        per_token = {"log_probs": log_probs}
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            per_token["entropy"] = entropy_from_logits(logits)
        lengths = micro_batch["input_ids"].offsets().diff()
        return {key: _to_nested(F.pad(value, (start, 0)), lengths) for key, value in per_token.items()}


def _first_position(micro_batch: TensorDict) -> int:
    """Return the first position, over all rows, whose logits predict a token under the loss mask.

    `loss_mask` is nested and ends where the sequence ends: it covers the response alone in RL, the whole sequence in
    SFT.
    """
    lengths = micro_batch["input_ids"].offsets().diff().tolist()
    firsts = []
    for length, mask in zip(lengths, micro_batch["loss_mask"].unbind()):
        trained = mask.nonzero()
        if trained.numel():
            firsts.append(length - mask.shape[0] + int(trained[0]) - 1)
    return max(0, min(firsts, default=max(lengths) - 1))


def _to_nested(padded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn a right-padded `(batch, length)` into a nested tensor with rows of the given lengths."""
    keep = torch.arange(padded.shape[1]) < lengths[:, None]
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    return torch.nested.nested_tensor_from_jagged(padded[keep], offsets)


@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithValueHead(FSDPEngineWithValueHead):
    """The critic. verl loads it with `attn_implementation="flash_attention_2"` whatever the recipe says
    (verl/utils/model.py@0.9.1, load_valuehead_model), which exists for GPUs only; here the recipe's choice holds."""

    def _build_module(self) -> torch.nn.Module:
        config = self.model_config.hf_config
        config.num_labels = 1
        config.classifier_dropout = 0.0
        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or "fp32")
        module = AutoModelForTokenClassification.from_pretrained(
            str(self.model_config.local_path),
            config=config,
            dtype=dtype,
            attn_implementation=config._attn_implementation or "sdpa",
            trust_remote_code=self.model_config.trust_remote_code,
        )
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module.to(dtype)
