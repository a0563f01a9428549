"""Build `.venv-sglang`: all of `.venv`, and SGLang beside it (`make test-sglang`).

A folder of its own, because `.venv` holds exactly the lock and 0.9 GB more would come with every `make setup`. It sees
the packages of `.venv` through a .pth file. Standard library only; run by the Python of `.venv`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_name("requirements-sglang-cpu.txt")
VENV = ROOT / ".venv-sglang"
STAMP = VENV / "setup.stamp"


def main() -> int:
    below = sysconfig.get_paths()["purelib"]
    wanted = f"{sys.version}\n{below}\n{LOCK.read_text()}"
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    python = VENV / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    print("setup: installing SGLang beside the stack of .venv")
    install = [*(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps")]
    done = subprocess.run([*install, "--ignore-installed", "--requirement", str(LOCK)])
    if done.returncode:
        print(f"setup: pip could not install {LOCK.name}; the lines above say why", file=sys.stderr)
        return 1
    STAMP.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
