"""A registration runs right after the module it extends was executed, once, and its errors are heard."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from verl_toolrl.integrations.on_import import pending, when_imported

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write importable modules: write(host="text of the module", ...)."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write_modules(**modules: str) -> None:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield write_modules
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_registration_waits_for_its_module_and_sees_it_complete(write: Write) -> None:
    write(host_a="registry = []\ncomplete = True", plug_a="import host_a\nhost_a.registry.append(host_a.complete)")
    when_imported("host_a", "plug_a")
    assert "plug_a" not in sys.modules and pending()["host_a"] == ["plug_a"]
    assert [True] == importlib.import_module("host_a").registry
    assert "host_a" not in pending()


def test_a_module_that_is_already_there_is_served_at_once(write: Write) -> None:
    write(host_b="registry = []", plug_b="import host_b\nhost_b.registry.append(1)")
    host = importlib.import_module("host_b")
    when_imported("host_b", "plug_b")
    assert [1] == host.registry


def test_asking_twice_registers_once(write: Write) -> None:
    write(host_c="registry = []", plug_c="import host_c\nhost_c.registry.append(1)")
    when_imported("host_c", "plug_c")
    when_imported("host_c", "plug_c")
    assert [1] == importlib.import_module("host_c").registry


def test_an_error_of_a_registration_comes_out_of_the_import_that_triggered_it(write: Write) -> None:
    write(host_d="", plug_d="raise RuntimeError('broken registration')")
    when_imported("host_d", "plug_d")
    with pytest.raises(RuntimeError, match="broken registration"):
        importlib.import_module("host_d")


def test_the_module_keeps_its_own_loader(write: Write) -> None:
    write(host_e="", plug_e="")
    when_imported("host_e", "plug_e")
    host = importlib.import_module("host_e")
    assert "SourceFileLoader" == type(host.__loader__).__name__ == type(host.__spec__.loader).__name__  # type: ignore[union-attr]
