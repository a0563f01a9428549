"""Build `.venv` with the stack that needs no GPU, from the lock requirements-cpu.txt (`make setup`).

Standard library only, since it runs before anything is installed. In order: find a Python that fits, look for room on
the disk, make the virtual environment, make sure that pip finds a CPU build of torch (before it downloads one), install
the lock without dependency resolution, install this project, load the stack once. pip does the work because it honours
the user's own indexes, find-links, proxies and certificates. What went well is kept: a second call returns at once when
nothing changed, and goes on where an interrupted one stopped. Each failure is one sentence that says what to do.

It does not install anything for a GPU: beside an existing verl, `pip install verl-toolrl` is all there is to do.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-cpu.txt"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "setup.stamp"

PYTHONS = ((3, 11), (3, 12))
# Measured: 2.9 GB of .venv, and the wheels (1.0 GB) lie in the temporary folder while pip unpacks them.
VENV_GB, TEMPORARY_GB = 3.5, 1.5
# torch's CPU wheels are below 200 MB, its CUDA wheels above 500 MB.
LARGEST_CPU_TORCH_MB = 350
# Loading these shows that the stack works here, and leaves their bytecode for the many processes of a run: trainer,
# workers, engine and its core, Ray's own. Without it each of them compiles some thousand files anew.
SMOKE = (
    *("verl.trainer.main_ppo", "verl.trainer.sft_trainer", "verl.trainer.ppo.v1", "verl.workers.engine_workers"),
    *("verl.workers.rollout.vllm_rollout.vllm_async_server", "verl.experimental.agent_loop", "transfer_queue"),
    *("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"),
    *("vllm.model_executor.models.llama", "transformers.models.llama.modeling_llama"),
    *("ray._private.workers.default_worker", "ray.dashboard.dashboard", "ray.dashboard.agent"),
    *("verl_toolrl", "verl_toolrl.cli"),
)


class SetupError(Exception):
    """Set-up cannot go on; the text is the one sentence to show."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build .venv with the stack that needs no GPU.")
    parser.add_argument("--python", help="the Python 3.11 or 3.12 to use; otherwise one is looked for")
    options = parser.parse_args()
    try:
        with open(__file__, "rb+") as only_one_at_a_time:  # to write: over NFS a lock needs it
            fcntl.flock(only_one_at_a_time, fcntl.LOCK_EX)
            set_up(options.python)
    except SetupError as err:
        print(f"setup: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; call it again and it goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def set_up(python: str | None) -> None:
    wanted = fingerprint()
    if python and VENV_PYTHON.exists():
        asked, found = version_of(python), version_of(str(VENV_PYTHON))
        if asked and found and asked != found:
            raise SetupError(f".venv has Python {found}, not {asked}; remove the folder .venv and call it again")
    if VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        print("setup: .venv is up to date")
        return
    check_system(platform.system(), platform.machine(), platform.libc_ver())
    if not has_pip():  # nor has it where the making of .venv was interrupted
        check_disk()
        make_venv(python or choose_python())
    check_venv_version()
    LOG.write_text("")
    check_torch(locked_version("torch"))
    # setuptools first: the lock holds one package that comes as source only, and building it must need no network.
    pip_install("the build tool", f"setuptools=={locked_version('setuptools')}")
    pip_install("the stack", "--requirement", str(LOCK), total=len(locked()))
    pip_install("this project", "--editable", str(ROOT))
    load_once()
    STAMP.write_text(wanted)
    print("setup: done; `make help` lists what can be run, `.venv/bin/verl-toolrl doctor` looks at this machine")


def fingerprint() -> str:
    """Hash everything that decides what ends up in .venv."""
    files = (LOCK, ROOT / "pyproject.toml", Path(__file__))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def locked() -> dict[str, str]:
    """Return `name -> version` of the lock."""
    pins = (re.match(r"([\w.-]+)==([\w.+!-]+)", line) for line in LOCK.read_text().splitlines())
    return {pin[1].lower(): pin[2] for pin in pins if pin}


def locked_version(name: str) -> str:
    return locked()[name]


# What has to be there first.


def check_system(system: str, machine: str, libc: tuple[str, str]) -> None:
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise SetupError(
            f"vLLM without a GPU comes for Linux on x86_64 and aarch64 only, and this is {system} on {machine}; "
            "run it in a Linux container or virtual machine"
        )
    if libc[0] != "glibc" or tuple(map(int, libc[1].split("."))) < (2, 28):
        found = " ".join(libc).strip() or "another C library"
        raise SetupError(f"the wheels of torch and vLLM need glibc 2.28 or later, and this system has {found}")


def check_disk() -> None:
    """Ask for room for .venv, and for the wheels where the temporary folder lies; both where it is one disk."""
    temporary = Path(tempfile.gettempdir())
    one_disk = os.stat(ROOT).st_dev == os.stat(temporary).st_dev
    for folder, need in ((ROOT, VENV_GB + TEMPORARY_GB * one_disk), (temporary, TEMPORARY_GB)):
        free = shutil.disk_usage(folder).free / 1e9
        if free < need:
            raise SetupError(
                f"set-up needs {need:.1f} GB on the disk of {folder}, and {free:.1f} GB are free; make room"
                + ("" if folder == ROOT else ", or set TMPDIR to a folder on a larger disk")
            )


def choose_python() -> str:
    """Return the first Python that fits: on PATH by version, then those of pyenv, then whatever `python3` is."""
    names = [f"python{major}.{minor}" for major, minor in PYTHONS]
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [folder / name for name in names for folder in folders]
    candidates += [path for name in names for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    candidates += [folder / "python3" for folder in folders] + [Path(sys.executable)]
    found = []
    for candidate in dict.fromkeys(str(path) for path in candidates if path.is_file()):
        problem = python_problem(candidate)
        if problem is None:
            return candidate
        found.append(f"{candidate}: {problem}")
    raise SetupError(
        f"no Python 3.11 or 3.12 was found ({'; '.join(found) or 'no Python at all'}); install one, or name it with "
        "`make setup PYTHON=/path/to/python3.11`"
    )


def python_problem(python: str) -> str | None:
    """Say why `python` cannot be used, or None when it can."""
    question = "import sys; print(*sys.version_info[:3], sys.implementation.name, sys.maxsize > 2**32)"
    try:
        run = subprocess.run([python, "-c", question], capture_output=True, text=True, timeout=30)
        major, minor, micro, implementation, is_64_bit = run.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "does not run"
    if (int(major), int(minor)) not in PYTHONS:
        return f"is Python {major}.{minor}.{micro}"
    if implementation != "cpython" or is_64_bit != "True":
        return "is not a 64-bit CPython"
    if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode:
        return f"has no venv and ensurepip (on Debian and Ubuntu: apt install python{major}.{minor}-venv)"
    return None


def version_of(python: str) -> str:
    """Return `3.11` of a Python, nothing where it does not run."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", question], capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def has_pip() -> bool:
    """Whether .venv is there and whole enough to install into."""
    return (
        VENV_PYTHON.exists() and not subprocess.run([VENV_PYTHON, "-c", "import pip"], capture_output=True).returncode
    )


def make_venv(python: str) -> None:
    python = shutil.which(python) or python
    problem = python_problem(python)
    if problem:
        raise SetupError(f"{python} {problem}; wanted is Python 3.11 or 3.12, as in `make setup PYTHON=python3.11`")
    print(f"setup: making .venv with {python}")
    run = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if run.returncode:
        raise SetupError(f"{python} cannot make a virtual environment: {last_line(run.stdout + run.stderr)}")


def check_venv_version() -> None:
    problem = python_problem(str(VENV_PYTHON))
    if problem and "ensurepip" not in problem:
        raise SetupError(f"the Python of .venv {problem}; remove the folder .venv and call `make setup` again")


# torch: the one package that has to be looked at before it is downloaded.


def check_torch(version: str) -> None:
    """Stop when pip finds only a CUDA build of torch, before it comes with its gigabytes."""
    if is_installed("torch", version):
        return
    wheel, size_mb = find_torch(version)
    if not is_cpu_build(wheel, size_mb):
        size = f" ({size_mb:.0f} MB, and gigabytes of CUDA packages that it asks for)" if size_mb else ""
        raise SetupError(
            f"pip finds only {wheel}, a build of torch for GPUs{size}; PyTorch's installation page names the index of "
            "CPU builds (Pip, CPU): PIP_EXTRA_INDEX_URL=<that index> make setup"
        )


def is_installed(name: str, version: str) -> bool:
    question = f"from importlib.metadata import version; print(version({name!r}).partition('+')[0])"
    run = subprocess.run([str(VENV_PYTHON), "-c", question], capture_output=True, text=True)
    return run.stdout.strip() == version


def find_torch(version: str) -> tuple[str, float | None]:
    """Return file name and size in MB of the wheel that pip would take; pip is ended as soon as it has said so."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["download", "--no-deps", "--only-binary=:all:", "--dest", folder, f"torch=={version}"]
        process = start_pip(*command)
        output = ""
        for line in process.stdout:
            output += line
            found = parse_wheel(line)
            if found:
                process.send_signal(signal.SIGINT)  # so that pip removes what it has begun to download
                process.communicate()
                return found
        process.wait()
    LOG.write_text(output)
    raise SetupError(explain(output))


def parse_wheel(line: str) -> tuple[str, float | None] | None:
    """Read the wheel out of pip's `Downloading x.whl (1.2 MB)`, `Using cached ...` or `Processing /folder/x.whl`."""
    found = re.match(r"\s*(?:Downloading|Using cached|Processing) (\S+\.whl)(?: \(([\d.]+) ([kMG]?)B\))?\s*$", line)
    if not found:
        return None
    path = found[1][7:] if found[1].startswith("file://") else found[1]
    if found[2]:
        size = float(found[2]) * {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}[found[3]]
    else:
        size = os.path.getsize(path) / 1e6 if os.path.exists(path) else None
    return os.path.basename(path), size


def is_cpu_build(wheel: str, size_mb: float | None) -> bool:
    """Judge by the label (`2.13.0+cpu`, `+cu130`); a wheel without one, as on PyPI, by its size."""
    label = wheel.split("-")[1].partition("+")[2]
    if label:
        return label.startswith("cpu")
    return size_mb is None or size_mb <= LARGEST_CPU_TORCH_MB


# Installing.


def start_pip(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(VENV_PYTHON), "-m", "pip", "--no-input", *arguments, "--progress-bar=off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def pip_install(what: str, *arguments: str, total: int | None = None) -> None:
    """Run pip without dependency resolution; show how far it is, write its output to the log."""
    # Bytecode is written by what is imported, which is a tenth of it.
    process = start_pip("install", "--no-deps", "--no-build-isolation", "--no-compile", *arguments)
    output, count = "", 0
    with open(LOG, "a") as log:
        for line in process.stdout:
            output += line
            log.write(line)
            count += line.startswith(("Collecting ", "Processing ", "Requirement already satisfied"))
            if line.startswith("Installing collected packages"):
                progress(f"setup: installing {what}: unpacking")
            elif total:
                progress(f"setup: installing {what}: {min(count, total)} of {total} packages")
    progress("")
    if process.wait():
        raise SetupError(f"{explain(output)} (everything pip said: {LOG})")
    print(f"setup: installed {what}")


def progress(text: str) -> None:
    """Show `text` in place of the last progress line; only where somebody watches."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def load_once() -> None:
    progress("setup: loading the stack once")
    # The bytecode is wanted here, whatever the shell says of others.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["VERL_PLATFORM"] = "cpu"
    run = subprocess.run(
        [str(VENV_PYTHON), "-c", f"import {', '.join(SMOKE)}"],
        cwd=VENV,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = run.stdout.decode(errors="replace")
    with open(LOG, "a") as log:
        log.write(output)
    progress("")
    if run.returncode:
        raise SetupError(f"the stack was installed but does not load: {last_line(output)} (all of it: {LOG})")
    print("setup: the stack loads")


# What went wrong, in one sentence.

NO_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|nodename nor servname|Network is unreachable"
    r"|Failed to establish a new connection|Failed to resolve|Connection refused|No route to host|ProxyError"
    r"|Read timed out|ConnectTimeout"
)


def explain(output: str) -> str:
    """Turn what pip said into one sentence that names the package and what to do."""
    errors = [line[7:].strip() for line in output.splitlines() if line.startswith("ERROR: ")]
    missing = re.search(r"No matching distribution found for (\S+)", output)
    unbuilt = re.search(r"Failed (?:to build|building wheel for) ([\w.-]+)", output)
    if "No space left on device" in output:
        return (
            f"the disk is full: set-up needs {VENV_GB} GB for .venv and {TEMPORARY_GB} GB in {tempfile.gettempdir()} "
            "(or in the folder that TMPDIR names)"
        )
    if NO_NETWORK.search(output):
        host = re.search(r"host='([\w.-]+)", output) or re.search(r"https?://([\w.-]+)", output)
        return (
            f"pip cannot reach {host[1] if host else 'its package index'}; check the network, or set pip's index or "
            "proxy (pip config list), and call `make setup` again"
        )
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return "pip does not trust its package index; name your certificates with `pip config set global.cert FILE`"
    if missing:
        return (
            f"pip finds no {missing[1]} for this Python and machine on its indexes (pip config list); add one that has "
            "it with PIP_EXTRA_INDEX_URL, or a folder of wheels with PIP_FIND_LINKS"
        )
    if unbuilt:
        return f"pip could not build {unbuilt[1]} from source"
    return f"pip failed: {errors[-1] if errors else last_line(output)}"


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
