"""Every name of verl (and of vLLM) that this package relies on, one a line, with what for.

verl promises stability for few of them. When an upgrade breaks one, `tests/integration/test_verl_names.py` fails in
that line, and `verl-toolrl doctor` says so on the user's machine.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

__all__ = ["CPU_NAMES", "NAMES", "VLLM_NAMES", "VerlName", "problem"]


@dataclass(frozen=True)
class VerlName:
    """One thing that we import, override or set."""

    path: str
    """`module:attribute.path`."""
    used_for: str
    """What breaks without it."""
    parameters: tuple[str, ...] = ()
    """Parameters that it must accept by name, or must name for an override to fit."""
    mentions: tuple[str, ...] = ()
    """Texts in its source: attributes of objects and keys of dictionaries, which have no name to import."""


def _name(path: str, used_for: str, *parameters: str, mentions: tuple[str, ...] = ()) -> VerlName:
    return VerlName(path, used_for, parameters, mentions)


_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_BUFFER = "verl.trainer.ppo.v1.replay_buffer"
_FSDP = "verl.workers.engine.fsdp.transformer_impl"

NAMES: tuple[VerlName, ...] = (
    _name("verl:__version__", "refusing versions that nobody has tried"),
    _name("verl:DataProto", "what a reward manager receives"),
    _name("verl.experimental.reward_loop.reward_manager:register", "the reward manager's name", "name"),
    _name("verl.experimental.reward_loop.reward_manager:get_reward_manager_cls", "doctor", "name"),
    _name(
        "verl.experimental.reward_loop.reward_manager.base:RewardManagerBase.__init__",
        "base of the reward manager",
        *("config", "tokenizer", "compute_score"),
    ),
    _name("verl.experimental.reward_loop.reward_manager.base:RewardManagerBase.run_single", "the override", "data"),
    _name("verl.experimental.agent_loop.agent_loop:register", "names of agent loops", "agent_name"),
    _name("verl.experimental.agent_loop.agent_loop:AgentLoopOutput.as_dict", "what a loop returns"),
    _name(
        "verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop.run",
        "seeds for each request",
        *("sampling_params", "priority"),
    ),
    _name(
        "verl.experimental.agent_loop.agent_loop:AgentLoopBase.ct_build_initial_tokens",
        "tools of a row in the chat template",
        *("messages", "tools"),
    ),
    _name(
        "verl.experimental.agent_loop.agent_loop:AgentLoopBase._cap_text_prompt_length",
        "prompts with tools that would be cut",
        "prompt_ids",
    ),
    _name(
        "verl.utils.dataset.multiturn_sft_dataset:MultiTurnSFTDataset._read_files_and_process",
        "tools of a supervised row in the chat template",
    ),
    _name(
        "verl.utils.dataset.rl_dataset:RLHFDataset.maybe_filter_out_long_prompts",
        "prompts measured with their tools",
        "dataframe",
    ),
    _name(
        "verl.tools.base_tool:BaseTool.execute", "verl's tools in our toolbox, and ours in verl's loop", "parameters"
    ),
    _name("verl.tools.function_tool:FunctionTool", "verl's tools in our toolbox"),
    _name("verl.tools.function_tool:normalize_function_tool_return", "what verl's tools answer"),
    _name("verl.tools.schemas:OpenAIFunctionToolSchema", "our tools in verl's loop"),
    _name("verl.tools.schemas:ToolResponse", "our tools in verl's loop"),
    _name(
        "verl.tools.tool_registry:load_all_tools",
        "verl's tools by their files",
        "tool_config_path",
        "function_tool_path",
    ),
    _name("verl.plugin.platform:get_platform", "doctor: the platform that verl takes"),
    _name("verl.experimental.agent_loop.agent_loop:AgentLoopBase.run", "loops of several turns", "sampling_params"),
    _name("verl.experimental.agent_loop.agent_loop:AgentLoopMetrics", "times of a trajectory"),
    _name(
        "verl.workers.rollout.llm_server:LLMServerClient.generate",
        "the engine of a trajectory",
        *("request_id", "prompt_ids", "sampling_params"),
    ),
    _name("verl.workers.rollout.replica:TokenOutput", "what an engine answers"),
    _name("verl.trainer.ppo.v1:register_trainer", "names of trainers", "name"),
    _name("verl.trainer.ppo.v1:get_trainer_cls", "doctor", "name"),
    _name("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY", "recipes check: registered names"),
    _name("verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY", "recipes check: registered names"),
    _name(
        "verl.experimental.reward_loop.reward_manager.registry:REWARD_MANAGER",
        "recipes check: registered names",
    ),
    _name("verl.experimental.agent_loop.agent_loop:_agent_loop_registry", "recipes check: registered names"),
    _name("verl.experimental.agent_loop.tool_parser:ToolParser._registry", "recipes check: registered names"),
    _name("verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY", "recipes check: registered names"),
    _name("verl.workers.rollout.replica:RolloutReplicaRegistry._registry", "recipes check: registered names"),
    _name("verl.utils.config:omega_conf_to_dataclass", "recipes check: dataclasses built", "config"),
    _name("verl.workers.config.model:AutoConfig", "recipes check: a stand-in for the model"),
    _name("verl.workers.config.model:hf_tokenizer", "recipes check: a stand-in for the model"),
    _name("verl.workers.config.model:hf_processor", "recipes check: a stand-in for the model"),
    _name("verl.workers.config.model:copy_to_local", "recipes check: a stand-in for the model"),
    _name("verl.workers.config.model:get_generation_config", "recipes check: a stand-in for the model"),
    _name("verl.trainer.ppo.v1:PPOTrainerSync", "base of toolrl_sync"),
    _name("verl.trainer.ppo.v1:PPOTrainerColocateAsync", "base of toolrl_colocate_async"),
    _name("verl.trainer.ppo.v1:PPOTrainerSeparateAsync", "base of toolrl_separate_async"),
    _name(f"{_TRAINER}._build_replay_buffer", "the poll interval"),
    _name(f"{_TRAINER}._balance_batch", "groups kept together on the CPU", "batch", "metrics"),
    _name(f"{_TRAINER}._init_dataloader", "the check of every row"),
    _name(f"{_TRAINER}._compute_advantage", "components for our estimators", "batch", "metrics"),
    _name("verl.trainer.ppo.core_algos:register_adv_est", "names of our estimators"),
    _name(
        f"{_TRAINER}._compute_metrics",
        "components in the training log",
        *("batch", "metrics", "timing_raw", "global_steps", "epoch"),
    ),
    _name(f"{_TRAINER}._validate", "lost sessions beside the figures of a validation"),
    _name(
        f"{_TRAINER}._compute_old_log_prob",
        "log-probs of a sample",
        *("batch", "metrics"),
        mentions=('"bypass_mode"', "self.config.algorithm"),
    ),
    _name(f"{_TRAINER}.fit", "rows with a number of sessions of their own", "agent_loop_manager"),
    _name(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ.generate_sequences",
        "rows with a number of sessions of their own",
        "prompts",
    ),
    _name(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt",
        "rows with a number of sessions of their own",
        mentions=('"__rollout_n__"',),
    ),
    _name(
        "verl.trainer.ppo.v1:PPOTrainerSeparateAsync._step_had_idle",
        "a poll interval that changes no switching",
        mentions=("self._step_sample_wait_seconds", "poll_interval", "2.0"),
    ),
    _name(
        "verl.trainer.ppo.padding_utils:construct_minimal_padding_template",
        "padding in no number and no estimator",
        mentions=("is_padding=True",),
    ),
    _name(f"{_BUFFER}:ReplayBuffer.__init__", "the poll interval", "poll_interval"),
    _name(f"{_BUFFER}:ReplayBuffer.sample", "lost sessions", "global_steps", "partition_id", "batch_size"),
    _name(f"{_BUFFER}:ReplayBufferAsync.sample", "lost sessions", "global_steps", "partition_id", "batch_size"),
    _name(
        f"{_BUFFER}:ReplayBufferAsync.wait_for_sampleable",
        "lost sessions",
        *("global_steps", "partition_id", "target_count"),
    ),
    _name(
        f"{_BUFFER}:ReplayBuffer._sync_metadata_from_transfer_queue",
        "authors' mistakes in sessions",
        mentions=("tq.kv_list()", "partition = self.partitions[partition_id]", "partition[key].update(tag)"),
    ),
    _name(
        f"{_BUFFER}:ReplayBuffer._evict_terminal_groups",
        "lost sessions of prompts that are refilled",
        *("global_steps", "partition_id", "eviction_reasons"),
        mentions=("stale_uids, dapo_uids, failed_uids, dapo_counts = eviction_reasons",),
    ),
    _name(
        f"{_BUFFER}:ReplayBuffer._select_prompt_uids",
        "lost sessions of a batch",
        *("partition_id", "sampleable_keys", "batch_size"),
        mentions=("return ordered_keys[:batch_size], partition_snapshot, prompt_global_steps_snapshot",),
    ),
    _name(f"{_BUFFER}:ReplayBuffer._clear_groups", "lost sessions", "partition_id", "uids"),
    _name("transfer_queue:get_client", "whether lost sessions can be reported"),
    _name("transfer_queue:init", "reporting the errors of a reward from its worker"),
    _name("transfer_queue:async_kv_put", "reporting lost sessions", "key", "partition_id", "tag"),
    _name("transfer_queue:kv_list", "reading lost sessions", "partition_id"),
    _name("transfer_queue:kv_clear", "dropping small groups", "keys", "partition_id"),
    _name("transfer_queue:KVBatchMeta.select_keys", "dropping small groups", "keys_to_select"),
    _name("transfer_queue:KVBatchMeta.reorder", "groups kept together on the CPU", "indexes"),
    _name("verl.model_merger.base_model_merger:ModelMergerConfig", "evaluating a checkpoint of shards", "local_dir"),
    _name("transfer_queue:kv_batch_get", "reading components", "keys", "partition_id", "select_fields"),
)
"""Relied on everywhere."""

CPU_NAMES: tuple[VerlName, ...] = (
    _name("verl.plugin.platform.platform_manager:PlatformRegistry.register", "the platform cpu", "platform"),
    _name("verl.plugin.platform.platform_base:PlatformBase", "base of the platform"),
    _name("verl.utils.distributed:initialize_global_process_group_ray", "asks the platform for its backend first"),
    _name("verl.workers.engine:EngineRegistry.register", "engines for cpu", "model_type", "backend", "device"),
    _name(
        f"{_FSDP}:FSDPEngineWithLMHead.forward_step",
        "rows without advantage left out",
        *("micro_batch", "loss_function", "forward_only"),
    ),
    _name("verl.workers.utils.losses:ppo_loss", "rows without advantage left out: which loss it is"),
    _name(f"{_FSDP}:FSDPEngineWithLMHead.prepare_model_inputs", "logits of the response alone", "micro_batch"),
    _name(
        f"{_FSDP}:FSDPEngineWithLMHead.prepare_model_outputs",
        "logits of the response alone",
        *("output", "output_args", "micro_batch", "logits_processor_func"),
    ),
    _name(f"{_FSDP}:FSDPEngineWithValueHead._build_module", "a critic without flash-attention"),
    _name("verl.utils.tensordict_utils:get_non_tensor_data", "flags of a micro batch", "data", "key", "default"),
    _name("verl.utils.torch_functional:entropy_from_logits", "entropy", "logits"),
    _name("verl.utils.torch_dtypes:PrecisionType.to_dtype", "dtypes of the critic"),
    _name("verl.trainer.sft_trainer:SFTTrainer.__init__", "supervised warm-up", "config"),
    _name(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        "weights that can be replaced",
        *("layer", "remove_weight"),
    ),
)
"""Relied on only where the CPU is chosen."""

_VLLM_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"

VLLM_NAMES: tuple[VerlName, ...] = (
    _name("vllm:LLM", "measuring a checkpoint"),
    _name("vllm:SamplingParams", "measuring a checkpoint", "temperature", "max_tokens"),
    _name("vllm:TokensPrompt", "measuring a checkpoint"),
    _name(f"{_VLLM_ENGINE}.add_request", "measuring a checkpoint", "request_id", "prompt", "params"),
    _name(f"{_VLLM_ENGINE}.has_unfinished_requests", "measuring a checkpoint"),
    _name(f"{_VLLM_ENGINE}.step", "answers as soon as they are there"),
    _name(
        "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler.forward_cpu",
        "one draw for seeded requests on a CPU",
        *("logits", "generators", "k", "p"),
    ),
    _name("vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p", "one draw for seeded requests on a CPU"),
    _name("vllm.v1.engine.exceptions:EngineDeadError", "sessions that a dead engine lost"),
    _name("vllm.v1.engine.exceptions:EngineGenerateError", "sessions that a failing engine lost"),
)
"""Relied on by `verl-toolrl evaluate`, and by rollouts on vLLM, where it is installed."""


def problem(name: VerlName) -> str | None:
    """Return what is wrong with a name in the installed versions, or None.

    Returns:
        A sentence for a person: the name, what is missing, and what it is used for.
    """
    module, _, attributes = name.path.partition(":")
    try:
        found: Any = reduce(getattr, attributes.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as err:
        return f"{name.path} (for {name.used_for}): {err}"
    missing = [parameter for parameter in name.parameters if not _accepts(found, parameter)]
    if missing:
        return f"{name.path} (for {name.used_for}): no parameter {', '.join(missing)} in {inspect.signature(found)}"
    unsaid = [text for text in name.mentions if text not in inspect.getsource(found)]
    if unsaid:
        return f"{name.path} (for {name.used_for}): its source does not say {', '.join(unsaid)}"
    return None


def _accepts(function: Callable[..., Any], parameter: str) -> bool:
    parameters = inspect.signature(function).parameters
    return parameter in parameters
