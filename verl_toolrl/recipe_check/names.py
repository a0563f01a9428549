"""Names in a recipe that nobody registered, and options that nobody reads with the names that were chosen."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_toolrl.errors import AuthorError, nearest
from verl_toolrl.integrations.registered import REGISTRIES, names_in_registry, names_in_source
from verl_toolrl.integrations.trainer_options import TRAINER_OPTIONS, option_problem
from verl_toolrl.recipe_check.finding import Finding
from verl_toolrl.recipe_check.sizes import select

__all__ = ["check_algorithm", "check_names", "check_reward", "check_rollout", "check_trainer"]

_OURS = ("verl_toolrl", "verl_toolrl.plugin")  # imports verl; its registrations are known
_AGENT_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
_OUR_LOOPS = ("toolrl_dialogue", "toolrl_native", "toolrl_react")
_VERL_TOOLS = ("tool_config_path", "function_tool_path")


def check_names(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the names that no registry knows."""
    external = select(config, "actor_rollout_ref.model.external_lib")
    if external and external != select(base, "actor_rollout_ref.model.external_lib"):
        try:
            for module in str(external).split(","):
                if module.strip() not in _OURS:
                    importlib.import_module(module.strip())
        except Exception as err:  # whatever a module of the user raises ends a run in the same way
            yield Finding("actor_rollout_ref.model.external_lib", f"cannot be imported: {type(err).__name__}: {err}")
            external = None
    for key, registry in REGISTRIES.items():
        name = select(config, key)
        if not isinstance(name, str) or name in ("???", select(base, key)) or _is_elsewhere(config, key, name):
            continue
        known = names_in_source(key)
        if name not in known:
            with contextlib.suppress(ImportError):  # an engine that is not installed here may be where it runs
                known |= names_in_registry(key, external)
        if name not in known:
            names = ", ".join(sorted(known))
            yield Finding(key, f"no {registry.kind} is registered as {name!r}{nearest(name, known)}; known: {names}")


def _is_elsewhere(config: Mapping[str, Any], key: str, name: str) -> bool:
    """Whether another key says where a name is found, so that no registry need know it."""
    if key == "reward.reward_manager.name":
        return select(config, "reward.reward_manager.source") == "importlib"
    path = select(config, "actor_rollout_ref.rollout.agent.agent_loop_config_path")
    if key != _AGENT_LOOP or not path:
        return False
    import yaml

    file = Path(str(path)).expanduser()
    # verl looks for it on the machine that runs; a file that is not here may be there.
    return not file.is_file() or any(entry.get("name") == name for entry in yaml.safe_load(file.read_text()) or [])


def check_reward(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Build the reward that our reward manager will build."""
    if select(config, "reward.reward_manager.name") != "toolrl":
        return
    from verl_toolrl.rewards import configured_reward, configured_watcher

    options = {str(key): value for key, value in (select(config, "reward.reward_kwargs") or {}).items()}
    try:
        reward = configured_reward(options)
        configured_watcher(options, reward)
    except (AuthorError, TypeError) as err:
        wrong = next((name for name in options if str(name) in str(err)), "")
        yield Finding(f"reward.reward_kwargs.{wrong}".rstrip("."), str(err))
        return
    yield from _without_effect(reward, "reward.reward_kwargs")


def _without_effect(reward: Any, key: str) -> Iterator[Finding]:
    """Yield the switches of the released scorer that change nothing, also in the parts of a mix."""
    from verl_toolrl.rewards.mix import MixReward
    from verl_toolrl.rewards.released import ReleasedReward

    if isinstance(reward, ReleasedReward):
        for option, needs in reward.without_effect.items():
            message = f"changes nothing, as in the authors' code: it needs {needs}"
            yield Finding(f"{key}.{option}", message, is_error=False)
    elif isinstance(reward, MixReward):
        for name, part, _ in reward.parts:
            yield from _without_effect(part, f"{key}.rewards.{name}")


def check_algorithm(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the options of our estimators, and that a trainer of ours is there to feed them."""
    from verl_toolrl.integrations.algorithm_options import ESTIMATOR_OPTIONS, algorithm_options

    algorithm = config["algorithm"]
    ours = select(config, "reward.reward_manager.name") == "toolrl"
    try:
        algorithm_options(algorithm, (select(config, "reward.reward_kwargs") or {}) if ours else None)
    except (AuthorError, TypeError) as err:
        key, _, message = str(err).partition(": ")
        known = key.startswith("algorithm.")
        yield Finding(key if known else "algorithm.toolrl", message if known else str(err))
    mode = str(select(config, "trainer.v1.trainer_mode") or "")
    if algorithm.get("adv_estimator") in ESTIMATOR_OPTIONS and not mode.startswith("toolrl_"):
        yield Finding(
            "trainer.v1.trainer_mode",
            f"algorithm.adv_estimator={algorithm['adv_estimator']} needs a trainer of ours: toolrl_{mode or 'sync'}",
        )


def check_rollout(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the settings of our agent loops of several turns, and that one of them is there to read them."""
    key = "actor_rollout_ref.rollout.custom.toolrl"
    block, loop = select(config, key), str(select(config, _AGENT_LOOP) or "")
    if loop not in _OUR_LOOPS:
        if block is not None:
            message = f"only rows with an agent_name of {', '.join(_OUR_LOOPS)} read it; {loop} does not"
            yield Finding(key, message, is_error=False)
        return
    from verl_toolrl.rollout.settings import RolloutSettings
    from verl_toolrl.toolbox import Toolbox

    try:
        settings = RolloutSettings.from_mapping(block)
        if settings.toolbox == "???":  # left to give; said elsewhere
            return
        if settings.toolbox is not None:
            Toolbox.load(settings.toolbox)
        elif not any(select(config, f"actor_rollout_ref.rollout.multi_turn.{path}") for path in _VERL_TOOLS):
            yield Finding(f"{key}.toolbox", f"the agent loop {loop} needs a tool set")
    except (AuthorError, TypeError) as err:
        yield Finding(key, str(err))


def check_trainer(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the options of our trainers, and that a trainer of ours is there to read them."""
    mode = str(select(config, "trainer.v1.trainer_mode") or "")
    options = select(config, "trainer.toolrl") or {}
    for key, value in options.items():
        if key not in TRAINER_OPTIONS:
            known = ", ".join(TRAINER_OPTIONS)
            yield Finding(f"trainer.toolrl.{key}", f"unknown option{nearest(key, TRAINER_OPTIONS)}; known: {known}")
        elif problem := option_problem(str(key), value):
            yield Finding(f"trainer.toolrl.{key}", problem)
    bypasses = select(config, "algorithm.rollout_correction.bypass_mode")
    if options.get("log_prob_sample") is not None and not bypasses:  # integrations/log_probs.py: check_log_prob_sample
        yield Finding(
            "trainer.toolrl.log_prob_sample",
            "the trainer refuses it without algorithm.rollout_correction.bypass_mode=true: set that, or null here",
        )
    if options and not mode.startswith("toolrl_"):
        yield Finding(
            "trainer.toolrl", f"nothing reads it with trainer.v1.trainer_mode={mode}: take toolrl_{mode or 'sync'}"
        )
    if mode.startswith("toolrl_") and select(config, "trainer.use_v1") is False:
        yield Finding("trainer.use_v1", f"trainer.v1.trainer_mode={mode} needs the V1 trainer (true)")
    enabled = select(config, "algorithm.filter_groups.enable")
    if enabled and select(config, "trainer.v1.sampler.custom_sampler.path"):
        yield Finding("algorithm.filter_groups.enable", "verl filters no groups with a custom sampler")
