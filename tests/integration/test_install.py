"""The built wheel: it works like the checkout, and installing it beside verl changes no version of anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE_PACKAGES = [path for path in sys.path if path.endswith("-packages")]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `pip wheel` does, from a copy of the sources: no build product of this checkout helps."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    shutil.copytree(
        ROOT, sources, symlinks=True, ignore=shutil.ignore_patterns(".venv*", ".git", "*.egg-info", "build", "outputs")
    )
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sources)
    return next(folder.glob("verl_toolrl-*.whl"))


def make_venv(folder: Path, *site_packages: str) -> Path:
    """Make a virtual environment that sees `site_packages` behind its own; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    own = next(folder.glob("lib/*/site-packages"))
    (own / "stack.pth").write_text("\n".join(site_packages))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment elsewhere that has the wheel and sees the packages of this one."""
    python = make_venv(tmp_path_factory.mktemp("elsewhere") / "venv", *SITE_PACKAGES)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed"]
    run(*pip, "--quiet", wheel)
    return python


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = run(*listing, "verl_toolrl", "recipes", "tools", cwd=ROOT).split()
    places = [name if name.startswith("verl_toolrl/") else f"verl_toolrl/{name}" for name in tracked]
    expected = {place for place in places if place not in ("verl_toolrl/recipes", "verl_toolrl/tools")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_installed_wheel_is_found_where_it_was_installed(installed: Path, tmp_path: Path) -> None:
    code = "import verl_toolrl.recipes, verl_toolrl.tools as tools; print(verl_toolrl.__file__, tools.__file__)"
    environment = str(installed.parents[1])
    assert all(place.startswith(environment) for place in run(installed, "-c", code, cwd=tmp_path).split())


def test_every_entry_point_of_the_installed_wheel_loads(installed: Path, tmp_path: Path) -> None:
    code = (
        "import verl\n"
        "from importlib.metadata import distribution\n"
        "for point in distribution('verl-toolrl').entry_points:\n"
        "    print(point.group, point.name, point.load() is not None)"
    )
    loaded = run(installed, "-c", code, cwd=tmp_path).splitlines()
    assert {line for line in loaded if line.endswith("True")} == {
        "console_scripts verl-toolrl True",
        "verl.plugins toolrl True",
        "torch.backends toolrl_cpu True",
        "vllm.general_plugins toolrl True",
    }


def test_the_console_script_of_the_installed_wheel_runs(installed: Path, tmp_path: Path) -> None:
    assert run(installed.parent / "verl-toolrl", "--version", cwd=tmp_path).startswith("verl-toolrl 0.")


def test_verl_composes_a_recipe_out_of_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "verl.trainer.main_ppo",
        "--config-name",
        "toolrl/quickstart",
        "--cfg",
        "job",
        "--package",
        "reward",
    ]
    text = run(installed, *command, cwd=tmp_path, env={**os.environ, "VERL_PLATFORM": "cpu"})
    assert "name: toolrl" in text


# Beside verl. pip decides in a dry run; `--no-index` and a folder of wheels keep it from the network.

EXTRAS = "[verl,vllm,sglang,mcp,tools,plot,dev]"


def would_install(python: Path, requirement: str, *options: str | Path) -> dict[str, str]:
    """Return name -> version of what pip would install into the environment of `python`."""
    report = python.parents[1] / "report.json"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "--no-index", "--quiet"]
    run(*pip, "--report", report, *options, requirement)
    items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in items}


def pretend_installed(site_packages: Path, packages: dict[str, str]) -> None:
    for name, version in packages.items():
        info = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "INSTALLER").write_text("pip\n")


def offer(folder: Path, packages: dict[str, str]) -> None:
    folder.mkdir()
    for name, version in packages.items():
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as file:
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")


def test_in_this_environment_nothing_but_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    # The extras that name verl and the engines are tried below: here their own requirements are incomplete on purpose
    # (requirements-cpu.txt).
    python = make_venv(tmp_path / "venv", *SITE_PACKAGES)
    assert set(would_install(python, f"{wheel}[mcp,tools,plot,dev]")) <= {"verl-toolrl"}


# The oldest of each that verl 0.9.1, its vLLM (0.24.0) and SGLang (0.5.12) extras and transformers 5.5 permit, or the
# version of January 2025 where nobody sets a bound.
OLDEST = {
    "verl": "0.9.1",
    "TransferQueue": "0.1.10",
    "vllm": "0.24.0",
    "sglang": "0.5.12",
    "torch": "2.11.0",
    "transformers": "5.5.3",
    "tensordict": "0.8.0",
    "ray": "2.41.0",
    "numpy": "2.0.0",
    "pyarrow": "19.0.0",
    "packaging": "23.0",
    "pydantic": "2.12.0",
    "PyYAML": "6.0",
    "httpx": "0.28.0",
    "scipy": "1.15.0",
    "typer": "0.15.1",
    "rich": "13.9.4",
    "orjson": "3.10.15",
    "hydra-core": "1.3.0",
    "matplotlib": "3.10.0",
    "pytest": "8.3.4",
}
ABSENT = (
    "json-repair",
    "jsonschema-rs",
    "mcp",
    "bm25s",
    "build",
    "canitoolcall",
    "hypothesis",
    "mypy",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "types-PyYAML",
)


@pytest.mark.parametrize("extras", ["", EXTRAS])
def test_beside_the_oldest_verl_only_what_is_absent_is_installed(wheel: Path, tmp_path: Path, extras: str) -> None:
    python = make_venv(tmp_path / "venv")
    pretend_installed(next((tmp_path / "venv").glob("lib/*/site-packages")), OLDEST)
    # A newer version of everything lies ready, as on PyPI.
    offer(tmp_path / "wheels", dict.fromkeys([*OLDEST, *ABSENT], "999.0"))
    new = would_install(python, f"{wheel}{extras}", "--find-links", tmp_path / "wheels")
    assert set(new) & {name.lower() for name in OLDEST} == set()
    assert "verl-toolrl" in new
    assert {"json-repair", "jsonschema-rs"} <= set(new)
