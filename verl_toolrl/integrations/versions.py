"""The range of verl versions that this package is written for, in one place."""

from __future__ import annotations

from packaging.version import Version

from verl_toolrl.errors import ConfigError

__all__ = ["VERL_MAX", "VERL_MIN", "check_verl"]

VERL_MIN = "0.9.1"
"""First version that works. 0.9.0 lacks `hf_model_type` and `ct_merge_context_msg` of the agent loop."""
VERL_MAX = "0.10"
"""First version that nobody has tried."""


def check_verl(version: str) -> None:
    """Accept verl versions in [0.9.1, 0.10).

    Raises:
        ConfigError: If the version lies outside; the text names the remedy.
    """
    if not Version(VERL_MIN) <= Version(version) < Version(VERL_MAX):
        raise ConfigError(
            f"verl {version} is installed, verl-toolrl needs verl>={VERL_MIN},<{VERL_MAX}: "
            f"pip install 'verl>={VERL_MIN},<{VERL_MAX}'"
        )
