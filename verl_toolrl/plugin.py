"""What verl loads at `import verl`, in every process (entry point group `verl.plugins`).

verl only loads the entry point, it never calls it, and it hides an error at level DEBUG. So importing this module does
the work, an error is logged with its traceback before verl swallows it, and recipes name this module as
`actor_rollout_ref.model.external_lib`, where an error is raised.

Nothing heavy happens here: each registration waits for the verl module that it extends (`integrations.on_import`).
"""

from __future__ import annotations

import logging

from verl_toolrl.integrations.chosen_platform import is_cpu_platform
from verl_toolrl.integrations.on_import import when_imported

__all__ = ["CPU_REGISTRATIONS", "REGISTRATIONS"]

logger = logging.getLogger(__name__)

REGISTRATIONS: dict[str, str] = {
    "omegaconf": "verl_toolrl.integrations.resolvers",
    "hydra.core.plugins": "verl_toolrl.integrations.hydra_searchpath",
    "verl.experimental.reward_loop.reward_manager": "verl_toolrl.integrations.reward_manager",
    "verl.experimental.agent_loop": "verl_toolrl.integrations.agent_loop",
    "verl.trainer.ppo.core_algos": "verl_toolrl.integrations.estimators",
    "verl.trainer.ppo.v1": "verl_toolrl.integrations.trainer",
}
"""Module of verl (or Hydra) -> our module that registers with it."""

CPU_REGISTRATIONS: dict[str, str] = {
    "verl.plugin.platform": "verl_toolrl.integrations.cpu.platform",
    "verl.workers.engine": "verl_toolrl.integrations.cpu.engines",
}
"""The same, only where `VERL_PLATFORM=cpu` chooses the CPU."""


def _register() -> None:
    import verl

    from verl_toolrl.integrations.versions import check_verl

    check_verl(verl.__version__)
    if is_cpu_platform():
        from verl_toolrl.integrations.cpu import environment, vllm_metadata

        environment.install()
        vllm_metadata.install()
        for name, registration in CPU_REGISTRATIONS.items():
            when_imported(name, registration)
    for name, registration in REGISTRATIONS.items():
        when_imported(name, registration)


try:
    _register()
except Exception:
    logger.exception("verl-toolrl could not register with verl; `verl-toolrl doctor` says more")
    raise
