"""verl's FSDP engines, registered for the device `cpu`: the policy as it is, the value model without flash-attention."""

from __future__ import annotations

import torch
from transformers import AutoModelForTokenClassification
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

__all__ = ["CPUEngineWithValueHead"]

EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithLMHead)


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
            self.model_config.local_path,
            config=config,
            dtype=dtype,
            attn_implementation=config._attn_implementation or "sdpa",
            trust_remote_code=self.model_config.trust_remote_code,
        )
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module.to(dtype)
