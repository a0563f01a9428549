"""The range of verl versions that this package is written for, in one place."""

from __future__ import annotations

import importlib.metadata

from packaging.specifiers import SpecifierSet

from verl_toolrl.errors import ConfigError

__all__ = ["VERL_MAX", "VERL_MIN", "check_installed_verl", "check_verl"]

VERL_MIN = "0.9.1"
"""First version that works. 0.9.0 lacks `hf_model_type` and `ct_merge_context_msg` of the agent loop."""
VERL_MAX = "0.10"
"""First version that nobody has tried."""


def check_verl(version: str) -> None:
    """Accept verl versions in [0.9.1, 0.10); what leads to 0.10 (0.10.0.dev0, 0.10rc1) is not in it.

    Raises:
        ConfigError: If the version lies outside; the text names the remedy.
    """
    if not SpecifierSet(f">={VERL_MIN},<{VERL_MAX}").contains(version, prereleases=True):
        raise ConfigError(
            f"verl {version} is installed, verl-toolrl needs verl>={VERL_MIN},<{VERL_MAX}: "
            f"pip install 'verl>={VERL_MIN},<{VERL_MAX}'"
        )


def check_installed_verl() -> None:
    """Check the version of the installed verl without importing it.

    A verl that was not installed but put on the path tells its version only when it is imported, and the plugin checks
    it then.

    Raises:
        ConfigError: As `check_verl` does.
    """
    try:
        version = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        return
    check_verl(version)
