"""What may stand under `algorithm.toolrl`, for each of our estimators.

    algorithm:
      adv_estimator: toolrl_gdpo
      use_kl_in_reward: false
      toolrl:
        components: [format, correctness]
        weights: {format: 1.0, correctness: 1.0}
        batch_norm: response

The trainer reads the options here before a model is loaded, and `verl-toolrl recipes check` without loading anything:
an estimator's options are a frozen dataclass in `ESTIMATOR_OPTIONS`. This module imports neither verl nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from verl_toolrl.errors import ConfigError, UnknownNameError, nearest
from verl_toolrl.rewards import component_names, configured_reward

__all__ = ["ESTIMATOR_OPTIONS", "EstimatorOptions", "GdpoOptions", "algorithm_options"]

_NODE = "algorithm.toolrl"
_BATCH_NORMS = ("response", "token", "none")


class EstimatorOptions(Protocol):
    """Options of one estimator: a frozen dataclass whose fields are the keys under `algorithm.toolrl`."""

    def check(self, algorithm: Mapping[str, Any], components: Sequence[str] | None) -> None:
        """Raise for what contradicts the rest of the recipe.

        Args:
            algorithm: The node `algorithm`.
            components: Names of the components of the reward; None where only a run tells.
        """
        ...


@dataclass(frozen=True)
class GdpoOptions:
    """Options of `toolrl_gdpo` (`verl_toolrl.credit.gdpo`)."""

    components: tuple[str, ...] | None = None
    """Components of the reward that are normalised apart; None: all of them."""
    weights: Mapping[str, float] | tuple[float, ...] | None = None
    """Factor of each normalised component: by name, or in the order of `components`; None: 1 each."""
    batch_norm: str = "response"
    """Last normalisation: `response` (the paper), `token` (the released code, verl's `gdpo`) or `none`."""

    def __post_init__(self) -> None:
        names, weights = self.components, self.weights
        if names is not None:
            if isinstance(names, (str, Mapping)) or not isinstance(names, Sequence):
                raise ConfigError(f"{_NODE}.components must be a list of names, got {names!r}")
            if not names or len(set(names)) != len(names):
                raise ConfigError(f"{_NODE}.components must name at least one component, and each once; got {names!r}")
            object.__setattr__(self, "components", tuple(map(str, names)))
        if self.batch_norm not in _BATCH_NORMS:
            raise UnknownNameError(f"{_NODE}.batch_norm", self.batch_norm, _BATCH_NORMS)
        if weights is None:
            return
        if not isinstance(weights, Mapping) and (isinstance(weights, str) or not isinstance(weights, Sequence)):
            raise ConfigError(f"{_NODE}.weights must map components to numbers or be a list, got {weights!r}")
        items = list(weights.items()) if isinstance(weights, Mapping) else list(enumerate(weights))
        for name, weight in items:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ConfigError(f"{_NODE}.weights: {name} must be a finite number, got {weight!r}")
            if weight < 0:
                raise ConfigError(f"{_NODE}.weights: {name} is {weight}; below 0 it would punish what is rewarded")
        if not any(weight for _, weight in items):
            raise ConfigError(f"{_NODE}.weights: all are 0, so nothing would be learned")
        if self.components is not None:
            self.resolve(self.components)

    def resolve(self, available: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return the components to normalise and their weights.

        Args:
            available: Names of the components that the reward has.

        Raises:
            ConfigError: If a component or a weight names none of them, or there are more or fewer weights.
        """
        names = tuple(available) if self.components is None else self.components
        for name in names:
            if name not in available:
                hint = nearest(name, available)
                raise ConfigError(
                    f"{_NODE}.components: the reward has no component {name!r}{hint}; it has: {', '.join(available)}"
                )
        if self.weights is None:
            return names, (1.0,) * len(names)
        if isinstance(self.weights, Mapping):
            for name in self.weights:
                if name not in names:
                    raise ConfigError(
                        f"{_NODE}.weights: {name!r} is no component that is normalised{nearest(name, names)}; "
                        f"these are: {', '.join(names)}"
                    )
            missing = [name for name in names if name not in self.weights]
            if missing:
                raise ConfigError(f"{_NODE}.weights: no weight for {', '.join(missing)}")
            return names, tuple(float(self.weights[name]) for name in names)
        if len(self.weights) != len(names):
            raise ConfigError(
                f"{_NODE}.weights: {len(self.weights)} weights for {len(names)} components ({', '.join(names)})"
            )
        return names, tuple(map(float, self.weights))

    def check(self, algorithm: Mapping[str, Any], components: Sequence[str] | None) -> None:
        """See `EstimatorOptions.check`."""
        if algorithm.get("use_kl_in_reward"):
            raise ConfigError(
                "algorithm.use_kl_in_reward: GDPO normalises components of the reward, and the KL penalty is none of "
                "them; take actor_rollout_ref.actor.use_kl_loss=true"
            )
        if components is not None:
            self.resolve(components)


ESTIMATOR_OPTIONS: dict[str, type[Any]] = {"toolrl_gdpo": GdpoOptions}
"""Estimator -> its options."""


def algorithm_options(
    algorithm: Mapping[str, Any], reward_kwargs: Mapping[str, Any] | None = None
) -> EstimatorOptions | None:
    """Read and check `algorithm.toolrl`.

    Args:
        algorithm: The node `algorithm` as plain values.
        reward_kwargs: The node `reward.reward_kwargs` where the reward manager is ours; None where it is not, so that
            the components are known only when a run has begun.

    Returns:
        The options of the estimator; None for an estimator that is not ours.

    Raises:
        ConfigError: For an unknown option, a wrong value, a contradiction, or options that no estimator reads.
    """
    estimator = str(algorithm.get("adv_estimator"))
    options = dict(algorithm.get("toolrl") or {})
    if estimator not in ESTIMATOR_OPTIONS:
        if options:
            raise ConfigError(
                f"{_NODE}: nothing reads it with algorithm.adv_estimator={estimator}; "
                f"these do: {', '.join(ESTIMATOR_OPTIONS)}"
            )
        return None
    scheme = ESTIMATOR_OPTIONS[estimator]
    known = [option.name for option in fields(scheme)]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{_NODE}.{name}: unknown option of {estimator}{nearest(name, known)}; known: {', '.join(known)}"
            )
    read: EstimatorOptions = scheme(**options)
    components = None if reward_kwargs is None else component_names(configured_reward(reward_kwargs))
    read.check(algorithm, components)
    return read
