"""Our advantage estimators under verl's names: what verl's registry gives them, and what only our trainers can.

verl hands a registered estimator token rewards, mask, uid and `config.algorithm`. The components of the reward, which
row belongs to which session and which rows are padding are known to the trainer: it puts them into `step_inputs` around
verl's own `_compute_advantage`, so that KL penalties and rollout correction stay verl's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import register_adv_est

from verl_toolrl.credit.gdpo import gdpo_advantages
from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.algorithm_options import EstimatorOptions, GdpoOptions, algorithm_options
from verl_toolrl.integrations.reward_info import reported_components
from verl_toolrl.integrations.session_keys import last_outputs

__all__ = ["StepInputs", "estimator_options", "session_components", "step_inputs"]


@dataclass(frozen=True)
class StepInputs:
    """What a trainer knows of the rows of a step beside their tensors; one entry a row, in the order of the batch."""

    keys: Sequence[str]
    """`{uid}_{session}_{output}`."""
    padding: Sequence[bool]
    """True for rows that verl added to make the batch divisible."""
    infos: Sequence[Mapping[str, Any] | None]
    """`reward_extra_info` of the row. Only that of a session's last output is looked at, of which verl copies it to the
    others; None where it is not known."""
    rollouts: int = 2
    """Rollouts a prompt that the recipe asks for."""


_INPUTS: ContextVar[StepInputs | None] = ContextVar("verl_toolrl_step_inputs", default=None)


@contextlib.contextmanager
def step_inputs(inputs: StepInputs) -> Iterator[None]:
    """Give the estimators below what they need for the calls inside the `with` block."""
    token = _INPUTS.set(inputs)
    try:
        yield
    finally:
        _INPUTS.reset(token)


def estimator_options(config: DictConfig) -> EstimatorOptions | None:
    """Read `algorithm.toolrl` of the trainer's whole configuration; see `algorithm_options`."""
    ours = config.reward.get("reward_manager") is not None and config.reward.reward_manager.name == "toolrl"
    kwargs = OmegaConf.to_container(config.reward.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
    assert isinstance(kwargs, dict)
    return algorithm_options(_plain(config.algorithm), {str(k): v for k, v in kwargs.items()} if ours else None)


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def session_components(
    inputs: StepInputs, response_mask: torch.Tensor, options: GdpoOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """Collect the components of every session of a step.

    Padding, and sessions of whose tokens none is trained, are in no session.

    Args:
        inputs: What the trainer knows of the rows.
        response_mask: `(rows, response_length)`; 1 = trained.
        options: Which components, with which weights.

    Returns:
        Components `(sessions, n)` float64, group `(sessions,)`, policy tokens `(sessions,)`, session of each row
        `(rows,)` with -1 where it has none, and the weights.

    Raises:
        ConfigError: If the reward manager reported no components, or not those that are asked for.
    """
    tokens = response_mask.ne(0).sum(1).tolist()
    real = [row for row, padding in enumerate(inputs.padding) if not padding]
    total: dict[str, int] = {}
    for row in real:
        session = inputs.keys[row].rpartition("_")[0]
        total[session] = total.get(session, 0) + tokens[row]
    ends = [real[position] for position in last_outputs([inputs.keys[row] for row in real])]
    last = {inputs.keys[row].rpartition("_")[0]: row for row in ends}
    sessions = [session for session in last if total[session] > 0]
    infos = [inputs.infos[last[session]] for session in sessions]
    names, weights = _resolve(infos, options)
    number = {session: index for index, session in enumerate(sessions)}
    uids = {uid: index for index, uid in enumerate(dict.fromkeys(session.rpartition("_")[0] for session in sessions))}
    values = [_values(info, names, session) for info, session in zip(infos, sessions) if info is not None]
    rows = [-1 if pad else number.get(key.rpartition("_")[0], -1) for key, pad in zip(inputs.keys, inputs.padding)]
    return (
        torch.tensor(values, dtype=torch.float64).view(len(sessions), len(names)),
        torch.tensor([uids[session.rpartition("_")[0]] for session in sessions], dtype=torch.int64),
        torch.tensor([total[session] for session in sessions], dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
        weights,
    )


def _values(info: Mapping[str, Any], names: Sequence[str], session: str) -> list[float]:
    missing = [name for name in names if name not in info]
    if missing:
        raise ConfigError(
            f"toolrl_gdpo: the reward manager reported no {', '.join(missing)} for session {session}; it reported: "
            f"{', '.join(map(str, info)) or 'nothing'}. Every session needs the same components"
        )
    return [float(info[name]) for name in names]


def _resolve(
    infos: Sequence[Mapping[str, Any] | None], options: GdpoOptions
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    known: list[str] | None = None
    for info in infos:
        if info is None:
            raise ConfigError(
                "toolrl_gdpo: the reward manager reported no components for a session; reward.reward_manager.name must "
                "be toolrl, or one that returns reward_extra_info with the components"
            )
        known = known or reported_components(info)
    if known is None:
        return options.components or ("none",), (1.0,) * len(options.components or ("none",))
    return options.resolve(known)


@register_adv_est("toolrl_gdpo")
def toolrl_gdpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    index: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GDPO on the components that the reward manager reported (`verl_toolrl.credit.gdpo`).

    Args:
        token_level_rewards: `(rows, response_length)`; not used, since components are normalised before they are added.
        response_mask: `(rows, response_length)`; 1 = trained.
        config: The node `algorithm`.
        index: uid of each row; not used, the rows' keys say more.
        **kwargs: What verl may add.

    Returns:
        Advantages and returns, both `(rows, response_length)`: the session's number on its policy tokens, in all its
        outputs; 0 in padding rows.

    Raises:
        ConfigError: Without a trainer of ours, or if options and components do not fit.
    """
    inputs = _INPUTS.get()
    if inputs is None:
        raise ConfigError("toolrl_gdpo: needs a trainer of ours (trainer.v1.trainer_mode: toolrl_sync)")
    algorithm = _plain(config)
    options = algorithm_options(algorithm)
    assert isinstance(options, GdpoOptions)
    components, group, policy_tokens, rows, weights = session_components(inputs, response_mask, options)
    values = gdpo_advantages(
        components,
        group,
        weights=weights,
        batch_norm=options.batch_norm,
        policy_tokens=policy_tokens,
        normalise_std=bool(algorithm.get("norm_adv_by_std_in_grpo", True)),
        lone="raw" if inputs.rollouts == 1 else "zero",
    )
    of_rows = torch.cat([values, values.new_zeros(1)])[rows]  # -1 is the zero at the end
    advantages = of_rows.to(token_level_rewards).unsqueeze(1) * response_mask
    return advantages, advantages
