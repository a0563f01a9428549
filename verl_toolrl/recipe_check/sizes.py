"""Batch sizes that do not divide, devices that cannot be shared out, lengths that the model cannot hold.

Rules of verl 0.9.1, each with where it stands there. Looked at only where the recipe changes a figure of the rule, so
that a rule never speaks about verl's own defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_toolrl.recipe_check.finding import Finding

__all__ = ["GROUP_ESTIMATORS", "check_sft_sizes", "check_sizes", "has_critic", "model_facts", "select"]

_ACTOR, _ROLLOUT, _CRITIC = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "critic"

GROUP_ESTIMATORS = frozenset(
    {
        *("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg", "gdpo", "toolrl_gdpo"),
        *("reinforce_plus_plus_baseline", "optimal_token_baseline", "tir_optimal_token_baseline"),
    }
)
"""Estimators that compare the rollouts of one prompt."""


def select(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None where a part of it is missing."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def has_critic(config: Mapping[str, Any]) -> bool:
    """Whether a critic is trained (trainer/ppo/utils.py: need_critic): as the recipe says, or where GAE wants one."""
    enabled = select(config, "critic.enable")
    return bool(enabled) if enabled is not None else select(config, "algorithm.adv_estimator") == "gae"


def model_facts(config: Mapping[str, Any], node: str) -> dict[str, int]:
    """Return what is known of the model: from its config.json where it is on this machine, else from `launch.model`.

    Args:
        config: The composed recipe.
        node: Key of the model's node.
    """
    facts = dict(select(config, "launch.model") or {})
    path = str(select(config, f"{node}.path") or "")
    file: Path | None = Path(path).expanduser() / "config.json"
    if file is not None and not file.is_file():
        file = _cached(path)
    if file is not None:
        content = json.loads(file.read_text(encoding="utf-8"))
        facts.update({name: content[name] for name in _FACTS if isinstance(content.get(name), int)})
    facts.update(
        {name: value for name, value in (select(config, f"{node}.override_config") or {}).items() if name in _FACTS}
    )
    return {name: value for name, value in facts.items() if isinstance(value, int)}


_FACTS = ("max_position_embeddings", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")


def _cached(path: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


class _Figures:
    """Integers of a recipe by key; remembers which differ from verl's."""

    def __init__(self, config: Mapping[str, Any], base: Mapping[str, Any], rank: Callable[[str], int]) -> None:
        self.config, self.base, self.rank = config, base, rank

    def __call__(self, key: str, default: int | None = None) -> int | None:
        value = select(self.config, key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def changed(self, *keys: str) -> bool:
        return any(select(self.config, key) != select(self.base, key) for key in keys)

    def strongest(self, *keys: str) -> str:
        """The changed key that the strongest file sets: the one whose author can put it right."""
        changed = [key for key in keys if self.changed(key)] or list(keys)
        return min(changed, key=self.rank)


def check_sizes(config: Mapping[str, Any], base: Mapping[str, Any], rank: Callable[[str], int]) -> Iterator[Finding]:
    """Yield what does not fit in a recipe for the RL trainer.

    Args:
        config: The composed recipe, resolved.
        base: verl's own tree, resolved.
        rank: Lower for a key that a stronger file sets; of several keys that do not fit the strongest is named.
    """
    of = _Figures(config, base, rank)
    world = (of("trainer.nnodes", 1) or 1) * (of("trainer.n_gpus_per_node", 1) or 1)
    yield from _devices(of, world)
    yield from _batches(of, world)
    yield from _separate_async(of)
    yield from _lengths(of)
    yield from _group(of)


def _model_parallel(of: _Figures, role: str, engine: str) -> tuple[int, list[str]]:
    """Return how many devices share a copy of the model, and the keys that say so."""
    if select(of.config, f"{role}.strategy") == "megatron":
        names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
        keys = [f"{role}.megatron.{name}" for name in names]
    else:
        keys = [f"{role}.{engine}.ulysses_sequence_parallel_size", f"{role}.ulysses_sequence_parallel_size"]
        return max(of(key, 1) or 1 for key in keys), keys
    size = 1
    for key in keys:
        size *= of(key, 1) or 1
    return size, keys


def _roles(of: _Figures) -> Iterator[tuple[str, str]]:
    yield _ACTOR, "fsdp_config"
    if has_critic(of.config):
        yield _CRITIC, "fsdp"


def _devices(of: _Figures, world: int) -> Iterator[Finding]:
    gpus = ("trainer.n_gpus_per_node", "trainer.nnodes")
    facts = model_facts(of.config, "actor_rollout_ref.model")
    heads = [("attention heads", facts.get("num_attention_heads"))]
    for role, engine in _roles(of):
        shared, keys = _model_parallel(of, role, engine)
        if world % shared and of.changed(*keys, *gpus):
            yield Finding(
                of.strongest(*keys, *gpus), f"{world} devices cannot be shared out to model copies of {shared} devices"
            )
        megatron = select(of.config, f"{role}.strategy") == "megatron"
        groups = [*heads, ("key-value heads", facts.get("num_key_value_heads"))] if megatron else heads
        yield from _splits(of, keys[0], groups)
        if megatron:
            yield from _splits(of, keys[1], [("layers", facts.get("num_hidden_layers"))])
    # workers/engine_workers.py: rollout world size; vLLM and SGLang refuse heads that do not divide.
    key = f"{_ROLLOUT}.tensor_model_parallel_size"
    names = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    size = 1
    for name in names:
        size *= of(f"{_ROLLOUT}.{name}", 1) or 1
    keys = [f"{_ROLLOUT}.{name}" for name in names]
    if world % size and of.changed(*keys, *gpus):
        yield Finding(of.strongest(*keys, *gpus), f"{world} devices cannot be shared out to rollout servers of {size}")
    yield from _splits(of, key, heads)


def _splits(of: _Figures, key: str, parts: list[tuple[str, int | None]]) -> Iterator[Finding]:
    size = of(key, 1) or 1
    for name, number in parts:
        if number and number % size and of.changed(key, "actor_rollout_ref.model.path"):
            yield Finding(key, f"the model's {number} {name} do not divide by {size}")


def _batches(of: _Figures, world: int) -> Iterator[Finding]:
    train, n = of("data.train_batch_size"), of(f"{_ROLLOUT}.n", 1) or 1
    gpus = ("trainer.n_gpus_per_node", "trainer.nnodes")
    if train is None:
        return
    generated = of("data.gen_batch_size")
    if generated and train % generated:  # trainer/ppo/v1/trainer_base.py: num_prompts % gen_batch_size
        yield Finding("data.gen_batch_size", f"data.train_batch_size={train} does not divide by {generated}")
    for role, engine in _roles(of):
        mini_key = f"{role}.ppo_mini_batch_size"
        micro_key = f"{role}.ppo_micro_batch_size_per_gpu"
        mini, micro = of(mini_key), of(micro_key)
        shared, keys = _model_parallel(of, role, engine)
        if not mini or world % shared:
            continue
        if mini > train and of.changed(mini_key, "data.train_batch_size"):  # ActorConfig.validate
            key = of.strongest(mini_key, "data.train_batch_size")
            yield Finding(key, f"{mini_key}={mini} is more than data.train_batch_size={train}")
        elif train % mini and of.changed(mini_key, "data.train_batch_size"):
            yield Finding(
                of.strongest(mini_key, "data.train_batch_size"),
                f"data.train_batch_size={train} does not divide by {mini_key}={mini}: the last update of each step "
                f"would be filled up with padding",
            )
        copies = world // shared
        if mini * n % copies and of.changed(mini_key, f"{_ROLLOUT}.n", *gpus, *keys):
            yield Finding(  # workers/engine_workers.py: mini_batch_size % data parallel size
                of.strongest(mini_key, f"{_ROLLOUT}.n", *gpus, *keys),
                f"{mini_key}={mini} x {n} rollouts do not divide by {copies} model copies",
            )
        elif micro and not select(of.config, f"{role}.use_dynamic_bsz") and mini * n // copies % micro:
            yield Finding(micro_key, f"{mini * n // copies} rows a device and update do not divide by {micro}")


def _separate_async(of: _Figures) -> Iterator[Finding]:
    """Yield what trainer/ppo/v1/trainer_separate_async.py asserts before it starts, and what it fails on later."""
    mode = str(select(of.config, "trainer.v1.trainer_mode") or "")
    if not mode.endswith("separate_async"):
        return
    why = f"trainer.v1.trainer_mode={mode}"
    train, mini = of("data.train_batch_size"), of(f"{_ACTOR}.ppo_mini_batch_size", 0) or 0
    every = of("trainer.v1.separate_async.parameter_sync_step", 1) or 1
    if train is not None and train != every * mini:
        yield Finding(
            "trainer.v1.separate_async.parameter_sync_step",
            f"data.train_batch_size={train} must be parameter_sync_step={every} x ppo_mini_batch_size={mini}",
        )
    yield from _rollout_devices(of, why)
    if select(of.config, f"{_ROLLOUT}.checkpoint_engine.backend") == "naive":
        yield Finding(
            f"{_ROLLOUT}.checkpoint_engine.backend",
            f"{why} sends weights to other GPUs, which naive cannot: nccl, nixl or mooncake is wanted",
        )
    model = "reward.reward_model"
    if select(of.config, f"{model}.enable") and not select(of.config, f"{model}.enable_resource_pool"):
        yield Finding(f"{model}.enable_resource_pool", f"{why} wants a reward model on GPUs of its own (true)")
    if select(of.config, "actor_rollout_ref.hybrid_engine") is False:
        yield Finding(  # logger.info(..., flush=True) in _setup
            "actor_rollout_ref.hybrid_engine", f"{why} ends with a TypeError in verl 0.9.1 where it is false"
        )


def _rollout_devices(of: _Figures, why: str) -> Iterator[Finding]:
    """Yield what is wrong with the devices that only write."""
    keys = (f"{_ROLLOUT}.nnodes", f"{_ROLLOUT}.n_gpus_per_node")
    for key in keys:
        if (of(key, 0) or 0) < 1:
            yield Finding(key, f"{why} gives the rollout GPUs of its own: 1 or more is wanted, not {of(key)}")
    own = (of(keys[0], 0) or 0) * (of(keys[1], 0) or 0)
    server = (of(f"{_ROLLOUT}.tensor_model_parallel_size", 1) or 1) * (of(f"{_ROLLOUT}.data_parallel_size", 1) or 1)
    if own % server:  # workers/rollout/llm_server.py divides and forgets the rest
        yield Finding(keys[1], f"{own} GPUs of the rollout cannot be shared out to rollout servers of {server}")


def _lengths(of: _Figures) -> Iterator[Finding]:
    prompt, response = of("data.max_prompt_length"), of("data.max_response_length")
    if not prompt or not response:
        return
    keys = ("data.max_prompt_length", "data.max_response_length")
    total, name = prompt + response, "data.max_prompt_length + data.max_response_length"
    limit = model_facts(of.config, "actor_rollout_ref.model").get("max_position_embeddings")
    if limit and total > limit and of.changed(*keys, "actor_rollout_ref.model.path"):
        yield Finding(of.strongest(*reversed(keys)), f"{name} = {total} is more than the model's {limit} positions")
    engine_limit = of(f"{_ROLLOUT}.max_model_len")
    if engine_limit and engine_limit < total:
        yield Finding(f"{_ROLLOUT}.max_model_len", f"{engine_limit} is less than {name} = {total}: responses are cut")
    if engine_limit and limit and engine_limit > limit:  # workers/rollout/vllm_rollout/vllm_async_server.py
        yield Finding(f"{_ROLLOUT}.max_model_len", f"{engine_limit} is more than the model's {limit} positions")
    budgets = [(_ACTOR, "fsdp_config", "ppo_max_token_len_per_gpu", "use_dynamic_bsz")]
    if any(role == _CRITIC for role, _ in _roles(of)):
        budgets.append((_CRITIC, "fsdp", "ppo_max_token_len_per_gpu", "use_dynamic_bsz"))
    budgets.append((_ROLLOUT, "", "log_prob_max_token_len_per_gpu", "log_prob_use_dynamic_bsz"))
    for role, engine, budget, switch in budgets:
        key = f"{role}.{budget}"
        shared = _model_parallel(of, role, engine)[0] if engine else _model_parallel(of, _ACTOR, "fsdp_config")[0]
        value = of(key)
        if value and select(of.config, f"{role}.{switch}") and value * shared < total and of.changed(key, *keys):
            yield Finding(key, f"a micro batch of {value} tokens cannot hold a row of {name} = {total}")


def _group(of: _Figures) -> Iterator[Finding]:
    estimator = str(select(of.config, "algorithm.adv_estimator") or "")
    if estimator in GROUP_ESTIMATORS and of(f"{_ROLLOUT}.n", 1) == 1:
        yield Finding(
            f"{_ROLLOUT}.n",
            f"algorithm.adv_estimator={estimator} compares the rollouts of a prompt: 2 or more are wanted",
        )


def check_sft_sizes(
    config: Mapping[str, Any], base: Mapping[str, Any], rank: Callable[[str], int]
) -> Iterator[Finding]:
    """Yield what does not fit in a recipe for the supervised trainer; arguments as for `check_sizes`."""
    of = _Figures(config, base, rank)
    world = (of("trainer.nnodes", 1) or 1) * (of("trainer.n_gpus_per_node", 1) or 1)
    train, micro = of("data.train_batch_size"), of("data.micro_batch_size_per_gpu")
    if train and train % world and of.changed("data.train_batch_size", "trainer.n_gpus_per_node", "trainer.nnodes"):
        yield Finding("data.train_batch_size", f"{train} rows do not divide by {world} devices")
    elif train and micro and not select(config, "data.use_dynamic_bsz") and train // world % micro:
        yield Finding("data.micro_batch_size_per_gpu", f"{train // world} rows a device do not divide by {micro}")
    length = of("data.max_length")
    limit = model_facts(config, "model").get("max_position_embeddings")
    if length and limit and length > limit and of.changed("data.max_length", "model.path"):
        yield Finding("data.max_length", f"{length} is more than the model's {limit} positions")
    budget = of("data.max_token_len_per_gpu")
    if budget and length and select(config, "data.use_dynamic_bsz") and budget < length:
        yield Finding("data.max_token_len_per_gpu", f"a micro batch of {budget} tokens cannot hold a row of {length}")
