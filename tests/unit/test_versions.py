"""verl outside the range is refused with a sentence that holds the remedy."""

from __future__ import annotations

import importlib.metadata

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.versions import check_installed_verl, check_verl


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.9.9.post1", "0.9.2.dev0", "0.9.2rc1", "0.9.1+local"])
def test_versions_in_the_range_are_accepted(version: str) -> None:
    check_verl(version)


@pytest.mark.parametrize("version", ["0.8.0", "0.9.0", "0.9.1rc1", "0.10.0.dev0", "0.10rc1", "0.10.0", "1.0"])
def test_versions_outside_are_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'verl>=0.9.1,<0.10'"):
        check_verl(version)


def test_the_installed_version_is_read_without_importing_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"verl": "0.10.0.dev0"}[name])
    with pytest.raises(ConfigError, match=r"verl 0.10.0.dev0 is installed, verl-toolrl needs verl>=0.9.1,<0.10"):
        check_installed_verl()


def test_a_verl_that_only_lies_on_the_path_is_left_to_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    check_installed_verl()
