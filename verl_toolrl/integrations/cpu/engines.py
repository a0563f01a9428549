"""verl's FSDP engines on the device `cpu`: a policy that reads a shared prompt once, a critic without flash-attention.

Both take part in verl's engine registry and change no gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
from verl.workers.utils.losses import ppo_loss

from verl_toolrl.integrations.cpu.attention import Blocks, with_blocks

__all__ = ["CPUEngineWithLMHead", "CPUEngineWithValueHead"]


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithLMHead(FSDPEngineWithLMHead):
    """The policy. What is the same for several rows is computed once, what no loss reads not at all.

    The rollouts of a group share their prompt, and tool prompts are long: verl computes it for each row, with logits
    for prompt and padding too. Here the rows of a micro batch that begin alike become one sequence,

        tokens:     |<- prompt ->|<- response 0 ->|<- response 1 ->| ...
        positions:  | 0 .. p - 1 | p, p + 1, ...  | p, p + 1, ...  |

    in which a response attends to the prompt and to itself, and only positions that predict a token of a response get
    logits. The probabilities and their gradients are the same up to rounding (tests/integration/test_cpu_engines.py).
    With 4 rollouts, 550 prompt tokens and 110 response tokens that is 990 tokens instead of 2,640. The prompt's part of
    the result, which no loss reads, is 0.

    Rows whose advantages are all 0 (groups with equal rewards, a third of them and more late in a run) have no gradient
    where the loss is nothing but the policy's: they are left out of an update, and count with their old log-probs. So
    `actor/ppo_kl` takes them as unmoved, also where a batch is gone through in several updates.
    """

    _skips_idle = False
    """Whether the forward pass that is under way is for a loss in which a row without advantage has no part."""
    _logits_wanted: _Packed | None = None
    """The micro batch whose logits the forward pass that is under way is asked for; None: all of them."""
    _hooked: torch.nn.Module | None = None
    """The head that `_keep_wanted` is registered with."""

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        self._skips_idle = not forward_only and _is_policy_loss_alone(loss_function)
        try:
            return super().forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)
        finally:
            self._skips_idle = False

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        self._logits_wanted = None
        if not self._can_share_prompts(micro_batch):
            inputs: tuple[dict[str, Any], dict[str, Any]] = super().prepare_model_inputs(micro_batch)
            return inputs
        packed = _pack(micro_batch, idle=_idle_rows(micro_batch) if self._skips_idle else ())
        head = self.module.get_output_embeddings()
        if self._hooked is not head:
            head.register_forward_pre_hook(self._keep_wanted)
            self._hooked = head
        self._logits_wanted = packed
        model_inputs = {
            "input_ids": packed.tokens,
            "position_ids": packed.positions,
            "attention_mask": packed.attention_mask,
        }
        return model_inputs, {"packed": packed}

    def _keep_wanted(self, head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        """Give the head the hidden states that predict a token of a response, `(response tokens, hidden size)`."""
        packed = self._logits_wanted
        return None if packed is None else (inputs[0][packed.sequence, packed.predictor],)

    def _can_share_prompts(self, micro_batch: TensorDict) -> bool:
        needs_all = ("use_remove_padding", "use_fused_kernels", "distillation_use_topk", "calculate_sum_pi_squared")
        return (
            "loss_mask" in micro_batch
            and micro_batch["position_ids"].dim() == 2
            # A mask that says more than "padding" is taken as it is by this implementation of attention.
            and self.module.config._attn_implementation == "sdpa"
            and isinstance(self.module.get_output_embeddings(), torch.nn.Linear)
            and not any(tu.get_non_tensor_data(data=micro_batch, key=key, default=False) for key in needs_all)
        )

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Return `log_probs` and, where asked for, `entropy`, as verl's engine does: nested, `(batch, length)`."""
        packed: _Packed | None = output_args.get("packed")
        if packed is None:
            result: dict[str, torch.Tensor] = super().prepare_model_outputs(
                output, output_args, micro_batch, logits_processor_func
            )
            return result
        logits = output.logits.float()  # (response tokens, vocabulary)
        temperature = micro_batch["temperature"]
        if isinstance(temperature, torch.Tensor):
            logits = logits / temperature.float().clamp(min=1e-8)[packed.row, None]
        elif float(temperature) != 1.0:
            logits = logits / max(float(temperature), 1e-8)
        per_token = {"log_probs": -F.cross_entropy(logits, packed.label, reduction="none")}
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            per_token["entropy"] = entropy_from_logits(logits)
        offsets = micro_batch["input_ids"].offsets()
        known = {row: micro_batch["old_log_probs"][row] for row in packed.idle}
        return {key: _unpack(value, packed, offsets, known) for key, value in per_token.items()}


def _is_policy_loss_alone(loss_function: Any) -> bool:
    """Whether a loss is verl's for PPO without terms for entropy or KL: proportional to the advantages."""
    if getattr(loss_function, "func", None) is not ppo_loss:
        return False
    config = loss_function.keywords["config"]
    return bool(
        config.policy_loss.get("loss_mode", "vanilla") == "vanilla"
        and not config.use_kl_loss
        and config.entropy_coeff == 0
    )


def _idle_rows(micro_batch: TensorDict) -> list[int]:
    """Return the rows whose advantages are all 0."""
    if not (micro_batch["advantages"].is_nested and micro_batch["old_log_probs"].is_nested):
        return []
    return [index for index, row in enumerate(micro_batch["advantages"].unbind()) if not row.any()]


@dataclass(frozen=True)
class _Packed:
    """A micro batch with rows that begin alike in one sequence."""

    tokens: torch.Tensor
    """`(sequences, length)` int64, right-padded with 0."""
    positions: torch.Tensor
    """`(sequences, length)` int64: a token's position in its own row."""
    attention_mask: torch.Tensor
    """`(sequences, 1, length, length)` bool; True where a token (third axis) sees another (fourth).

    It carries the same as blocks, by which attention is computed.
    """
    row: torch.Tensor
    """`(n,)`: row of the micro batch, for each of the n response tokens of all rows, row by row."""
    sequence: torch.Tensor
    """`(n,)`: the sequence that holds the token."""
    predictor: torch.Tensor
    """`(n,)`: position in the sequence whose logits predict the token."""
    label: torch.Tensor
    """`(n,)`: the token."""
    place: torch.Tensor
    """`(n,)`: position in its own row at which verl expects the token's log-prob: one before the token."""
    idle: Collection[int]
    """Rows that are left out."""


def _pack(micro_batch: TensorDict, *, idle: Collection[int] = ()) -> _Packed:
    rows = list(micro_batch["input_ids"].unbind())
    starts = [_response_start(len(row), mask) for row, mask in zip(rows, micro_batch["loss_mask"].unbind())]
    groups: dict[tuple[int, ...], list[int]] = {}
    order = [index for index in range(len(rows)) if index not in idle]
    for index in order:
        groups.setdefault(tuple(rows[index][: starts[index]].tolist()), []).append(index)
    if not groups:
        groups[int(rows[0][0]),] = []  # a token of which nothing is asked: the pass has to happen, FSDP counts on it

    lengths = [len(prompt) + sum(len(rows[i]) - starts[i] for i in members) for prompt, members in groups.items()]
    size = (len(groups), max(lengths))
    tokens, positions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    blocks = []
    sees = torch.eye(size[1], dtype=torch.bool).repeat(
        size[0], 1, 1
    )  # padding sees itself: an empty row would give NaN
    per_row: dict[int, tuple[int, torch.Tensor]] = {}
    for number, (prompt, members) in enumerate(groups.items()):
        p = len(prompt)
        tokens[number, :p], positions[number, :p] = torch.tensor(prompt), torch.arange(p)
        sees[number, :p, :p] = torch.ones(p, p, dtype=torch.bool).tril()
        begin = p
        for index in members:
            response = rows[index][p:]
            end = begin + len(response)
            tokens[number, begin:end], positions[number, begin:end] = response, torch.arange(p, p + len(response))
            sees[number, begin:end, :p] = True
            sees[number, begin:end, begin:end] = torch.ones(len(response), len(response), dtype=torch.bool).tril()
            per_row[index] = number, torch.cat([torch.tensor([p - 1]), torch.arange(begin, end - 1)])
            begin = end
        blocks.append(Blocks(p, tuple(len(rows[i]) - p for i in members)))

    counts = torch.tensor([len(per_row[i][1]) for i in order], dtype=torch.long)
    none = torch.empty(0, dtype=torch.long)
    return _Packed(
        tokens=tokens,
        positions=positions,
        attention_mask=with_blocks(sees[:, None], blocks),
        row=torch.repeat_interleave(torch.tensor(order, dtype=torch.long), counts),
        sequence=torch.repeat_interleave(torch.tensor([per_row[i][0] for i in order], dtype=torch.long), counts),
        predictor=torch.cat([none, *(per_row[i][1] for i in order)]),
        label=torch.cat([none, *(rows[i][starts[i] :] for i in order)]),
        place=torch.cat([none, *(torch.arange(starts[i] - 1, len(rows[i]) - 1) for i in order)]),
        idle=idle,
    )


def _response_start(length: int, mask: torch.Tensor) -> int:
    """Return the position of the first token of a row that the loss looks at, at least 1.

    `mask` ends where the row ends: it covers the response alone in RL, the whole row in SFT.
    """
    trained = mask.nonzero()
    start = length - mask.shape[0] + (int(trained[0]) if trained.numel() else 0)
    return min(max(start, 1), length - 1)


def _unpack(
    values: torch.Tensor, packed: _Packed, offsets: torch.Tensor, known: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    """Put one value a response token where verl expects it: nested, `(batch, length)`, 0 elsewhere.

    Args:
        values: `(n,)`, of the rows that were computed.
        packed: How they were packed.
        offsets: `(batch + 1,)`: where each row begins and ends.
        known: Values of the response tokens of the other rows.
    """
    flat = torch.zeros(int(offsets[-1]), dtype=values.dtype)
    for row, found in known.items():
        end = int(offsets[row + 1]) - 1
        flat[end - len(found) : end] = found
    flat = flat.index_copy(0, offsets[packed.row] + packed.place, values)
    return torch.nested.nested_tensor_from_jagged(flat, offsets)


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
