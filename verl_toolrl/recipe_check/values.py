"""Types of values, keys that nothing reads any more, and values out of a closed set."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import nearest
from verl_toolrl.recipe_check.finding import Finding
from verl_toolrl.recipe_check.tree import Value

__all__ = ["CHOICES", "DEAD", "check_choices", "check_dead", "check_type"]

DEAD: dict[str, str] = {
    "reward_model": "verl 0.9 no longer reads it: its place is reward.reward_manager, reward.reward_model",
    "custom_reward_function": "verl 0.9 no longer reads it: its place is reward.custom_reward_function",
    "sandbox_fusion": "verl 0.9 no longer reads it: its place is reward.sandbox_fusion",
    "actor_rollout_ref.rollout.multi_turn.enable": "nothing reads it in verl 0.9.1: an agent loop decides about turns "
    "(actor_rollout_ref.rollout.agent.default_agent_loop)",
    "actor_rollout_ref.rollout.multi_turn.use_inference_chat_template": "nothing reads it in verl 0.9.1",
    "actor_rollout_ref.rollout.multi_turn.tokenization_sanity_check_mode": "nothing reads it in verl 0.9.1",
    "actor_rollout_ref.rollout.multi_turn.num_repeat_rollouts": "nothing reads it in verl 0.9.1: its place is "
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.agent.custom_async_server": "nothing reads it in verl 0.9.1",
}
"""Keys that verl still has, and that change nothing (0.9.1, V1 trainer)."""

CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm.kl_penalty": ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full"),
    "algorithm.kl_ctrl.type": ("fixed", "adaptive"),
    "actor_rollout_ref.actor.kl_loss_type": ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full"),
    "actor_rollout_ref.actor.strategy": ("fsdp", "fsdp2", "fsdp_turbo", "megatron", "veomni", "torchtitan"),
    "actor_rollout_ref.rollout.dtype": ("bfloat16", "float16", "float32", "auto", "half", "float"),
    "actor_rollout_ref.rollout.multi_turn.tool_response_truncate_side": ("left", "middle", "right"),
    "data.truncation": ("error", "left", "right", "middle"),
    "trainer.resume_mode": ("auto", "disable", "resume_path"),
    "trainer.device": ("cuda", "cpu", "npu"),
    "trainer.logger": (
        *("console", "file", "wandb", "mlflow", "swanlab", "vemlp_wandb"),
        *("tensorboard", "clearml", "trackio", "rl_insight"),
    ),
}
"""Key -> the values that verl knows. (Straight KL estimates, `+` behind the name, are allowed as well.)"""

# Where verl's default does not show what is allowed.
_ALSO: dict[str, tuple[Any, ...]] = {
    "trainer.logger": (str, list),
    "data.train_files": (str, list),
    "data.val_files": (str, list, type(None)),
    "trainer.v1.colocate_async.num_warmup_batches": (int, float),
    "trainer.v1.separate_async.num_warmup_batches": (int, float),
    "model.target_modules": (str, list),
}
# The RL trainer compares both with 0, which a text ends after the first step.
_ALSO_SUPERVISED: dict[str, tuple[Any, ...]] = {
    "trainer.save_freq": (int, typing.Literal["after_each_epoch"]),
    "trainer.test_freq": (int, typing.Literal["after_each_epoch"]),
}
_OPTIONAL: dict[str, type] = {
    "trainer.total_training_steps": int,
    "trainer.max_actor_ckpt_to_keep": int,
    "trainer.max_critic_ckpt_to_keep": int,
    "trainer.max_ckpt_to_keep": int,
    "trainer.resume_from_path": str,
    "trainer.rollout_data_dir": str,
    "trainer.validation_data_dir": str,
    "data.seed": int,
    "data.gen_batch_size": int,
    "data.val_batch_size": int,
    "data.tokenizer": str,
    "ray_kwargs.ray_init.num_cpus": int,
}
"""Type of values whose default is none and that no dataclass describes."""


def check_type(value: Value, *, supervised: bool = False) -> Finding | None:
    """Return what is wrong with the type of a changed value, or None.

    Args:
        value: A value that differs from verl's.
        supervised: Whether the supervised trainer reads it, which takes more in two places.
    """
    also = {**_ALSO, **_ALSO_SUPERVISED} if supervised else _ALSO
    if isinstance(value.value, str) and value.value == "???":
        return None
    if value.key in also:
        wanted: Any = typing.Union[also[value.key]]  # noqa: UP007
    elif value.hint is not None and value.hint is not Any:
        wanted = value.hint
    elif value.default is not None and value.default != "???":
        wanted = type(value.default)
    elif value.key in _OPTIONAL:
        wanted = typing.Optional[_OPTIONAL[value.key]]  # noqa: UP045
    else:
        return None
    is_number = isinstance(value.default, (int, float)) and not isinstance(value.default, bool)
    if value.value is None and value.hint is None and not is_number:
        return None  # a switch or a text that is null is off
    if _fits(value.value, wanted):
        return None
    return Finding(value.key, f"{_name(wanted)} is wanted, not {value.value!r} ({type(value.value).__name__})")


def _fits(value: Any, hint: Any) -> bool:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, Mapping):
        return kind is dict or not issubclass(kind, (bool, int, float, str, list, type(None)))
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in (list, tuple, set) or kind is Sequence:
        if not isinstance(value, list):
            return False
        return all(_fits(item, options[0]) for item in value) if options and options[0] is not ... else True
    if kind in (str, dict, type(None)):
        return isinstance(value, kind)
    return not isinstance(value, (bool, int, float))  # a class, an enum: given as text or mapping


def _name(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _name(option) for option in options)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, options))
    return {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a text", "list": "a list"}.get(
        getattr(hint, "__name__", ""), str(hint)
    )


def check_dead(value: Value) -> Finding | None:
    """Return a finding for a changed value that changes nothing."""
    for key, message in DEAD.items():
        if value.key == key or value.key.startswith(f"{key}."):
            last = value.key.removeprefix(key).lstrip(".")
            place = f" (reward.{value.key})" if key in ("custom_reward_function", "sandbox_fusion") and last else ""
            return Finding(value.key, f"{message}{place}")
    return None


def check_choices(value: Value) -> Iterator[Finding]:
    """Yield a finding for a changed value that verl does not know."""
    if value.key not in CHOICES or value.value in (None, "???"):
        return
    known = CHOICES[value.key]
    for item in value.value if isinstance(value.value, list) else [value.value]:
        text = str(item).rstrip("+") if "kl" in value.key else str(item)
        if text not in known:
            yield Finding(value.key, f"unknown value {item!r}{nearest(text, known)}; known: {', '.join(known)}")
