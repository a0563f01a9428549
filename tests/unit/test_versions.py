"""verl outside the range is refused with a sentence that holds the remedy."""

from __future__ import annotations

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.versions import check_verl


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.9.9.post1"])
def test_versions_in_the_range_are_accepted(version: str) -> None:
    check_verl(version)


@pytest.mark.parametrize("version", ["0.8.0", "0.9.0", "0.10.0", "1.0"])
def test_versions_outside_are_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'verl>=0.9.1,<0.10'"):
        check_verl(version)
