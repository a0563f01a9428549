"""The stand-ins for SGLang on the CPU: nothing happens elsewhere, and nothing is computed by them.

That SGLang then works is shown by tests/sglang, where it is installed.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

from verl_toolrl.integrations.cpu import sglang_stand_ins
from verl_toolrl.integrations.cpu.sglang_stand_ins import _KernelsFinder, prepare


@pytest.mark.parametrize(("platform", "installed"), [("", True), ("cuda", True), ("cpu", False)])
def test_nothing_is_done_without_the_cpu_platform_or_without_sglang(
    platform: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr(sglang_stand_ins, "_kept", [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    before = list(sys.meta_path)
    prepare()
    assert before == sys.meta_path and not sglang_stand_ins._kept


def test_the_kernels_can_be_imported_and_raise_when_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("sgl_kernel") is not None:
        pytest.skip("the real kernels are installed")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _KernelsFinder()])
    for name in ("sgl_kernel", "sgl_kernel.kvcacheio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from sgl_kernel.kvcacheio import transfer_kv_direct

    with pytest.raises(NotImplementedError, match="transfer_kv_direct needs CUDA"):
        transfer_kv_direct()
    assert importlib.util.find_spec("sgl_kernel_npu") is None
