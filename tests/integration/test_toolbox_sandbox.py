"""Programs that try to leave the sandbox, under every means and as root and as nobody: all must fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_toolrl.errors import ConfigError
from verl_toolrl.toolbox import Toolbox, sandbox
from verl_toolrl.toolbox.sandbox import MEANS, RunResult, Sandbox, SandboxUnavailable
from verl_toolrl.trajectory import Outcome, ToolCall

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


@pytest.fixture(params=MEANS)
def means(request: pytest.FixtureRequest, walls: frozenset[str], tmp_path: Path) -> str:
    if request.param not in walls:
        pytest.skip(f"this kernel grants no {request.param}")
    return asyncio.run(Sandbox(tmp_path, means=request.param).check())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.txt").write_text("the secret")
    return tmp_path / "inside"


@pytest.fixture
def server() -> Iterator[int]:
    """A server on this machine that counts who gets through."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def run(folder: Path, means: str, code: str, **options: object) -> RunResult:
    return asyncio.run(Sandbox(folder, means=means, **{"seconds": 20.0, **options}).run(code))  # type: ignore[arg-type]


# Each program tries one way out and prints ESCAPED if it works. Any exception, error or death is a failed attempt.
_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_ATTEMPTS = {
    "read a system file": "open('/etc/passwd').read(); print('ESCAPED')",
    "read a neighbour": "open({secret!r}).read(); print('ESCAPED')",
    "read a neighbour by ..": "open('../secret.txt').read(); print('ESCAPED')",
    "read through a symlink": "import os\nos.symlink({secret!r}, 'l'); open('l').read(); print('ESCAPED')",
    "hard link of a neighbour": "import os\nos.link({secret!r}, 'h'); open('h').read(); print('ESCAPED')",
    "rename a neighbour into the folder": "import os\nos.rename({secret!r}, 'stolen'); print('ESCAPED')",
    "write beside the folder": "open({outside!r}, 'w').write('x'); print('ESCAPED')",
    "truncate a neighbour": "import os\nos.truncate({secret!r}, 0); print('ESCAPED')",
    "change a neighbour's mode": "import os\nos.chmod({secret!r}, 0o777); print('ESCAPED')",
    "change a neighbour's time": "import os\nos.utime({secret!r}, (0, 0)); print('ESCAPED')",
    "delete a neighbour": "import os\nos.remove({secret!r}); print('ESCAPED')",
    "list the root's home": "import os\nos.listdir(os.path.expanduser('~/.ssh')); print('ESCAPED')",
    "write to /tmp": "open('/tmp/sandbox-escape', 'w').write('x'); print('ESCAPED')",
    "write to the interpreter": "import os\nopen(os.__file__, 'a').write('#'); print('ESCAPED')",
    "unlink the interpreter": "import os\nos.remove(os.__file__); print('ESCAPED')",
    "chmod the interpreter": "import os\nos.chmod(os.__file__, 0o666); print('ESCAPED')",
    "fchmod the interpreter": "import os\nos.fchmod(os.open(os.__file__, os.O_RDONLY), 0o666); print('ESCAPED')",
    "environment of process 1": "open('/proc/1/environ', 'rb').read(); print('ESCAPED')",
    "environment of the trainer": "open('/proc/{parent}/environ', 'rb').read(); print('ESCAPED')",
    "memory of the trainer": "open('/proc/{parent}/mem', 'rb').read(1); print('ESCAPED')",
    "inherited secrets": "import os\nprint('ESCAPED' if 'TOOLBOX_TEST_SECRET' in os.environ else '')",
    "inherited descriptors": (
        "import os\nfor fd in range(3, 128):\n    try:\n        os.fstat(fd); print('ESCAPED', fd)\n"
        "    except OSError:\n        pass"
    ),
    "tcp socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2); print('ESCAPED')",
    "udp socket": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); print('ESCAPED')",
    "unix socket": "import socket\ns = socket.socket(socket.AF_UNIX); print('ESCAPED')",
    "socketpair": "import socket\nsocket.socketpair(); print('ESCAPED')",
    "raw netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('ESCAPED')",
    "socket by number": _LIBC + "print('ESCAPED' if libc.syscall({nr_socket}, 2, 1, 0) >= 0 else '')",
    "io_uring": _LIBC + "print('ESCAPED' if libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0 else '')",
    "x32 system calls": _LIBC + "r = libc.syscall(0x40000000 + 41, 2, 1, 0)\nprint('ESCAPED' if r >= 0 else '')",
    "fork": "import os\npid = os.fork()\nprint('ESCAPED')",
    "vfork and exec": "import subprocess\nsubprocess.run(['/bin/echo', 'ESCAPED'], check=True)",
    "exec": "import os\nos.execv('/usr/bin/echo', ['echo', 'ESCAPED'])",
    "posix_spawn": "import os\nos.posix_spawn('/usr/bin/echo', ['echo', 'ESCAPED'], {{}}); print('ESCAPED')",
    "multiprocessing": "import multiprocessing as m\np = m.Process(target=print); p.start(); print('ESCAPED')",
    "clone without thread": _LIBC + "print('ESCAPED' if libc.syscall({nr_clone}, 17, 0, 0, 0, 0) >= 0 else '')",
    "kill the trainer": "import os\nos.kill({parent}, 0); print('ESCAPED')",
    "kill everything": "import os\nos.kill(-1, 9); print('ESCAPED')",
    "pidfd": "import os\nos.pidfd_open({parent}); print('ESCAPED')",
    "ptrace": _LIBC + "print('ESCAPED' if libc.ptrace(16, {parent}, 0, 0) == 0 else '')",
    "process_vm_readv": _LIBC + "print('ESCAPED' if libc.process_vm_readv({parent}, 0, 0, 0, 0, 0) >= 0 else '')",
    "become root": "import os\nos.setuid(0); print('ESCAPED')",
    "set groups": "import os\nos.setgroups([0]); print('ESCAPED')",
    "new user namespace": _LIBC + "print('ESCAPED' if libc.unshare(0x10000000) == 0 else '')",
    "join a namespace": _LIBC + "print('ESCAPED' if libc.setns(0, 0) == 0 else '')",
    "mount": _LIBC + "print('ESCAPED' if libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0 else '')",
    "unmount": _LIBC + "print('ESCAPED' if libc.umount2(b'/', 2) == 0 else '')",
    "chroot": "import os\nos.chroot('.'); print('ESCAPED')",
    "open by handle": _LIBC
    + "h = ctypes.create_string_buffer(64)\nprint('ESCAPED' if libc.open_by_handle_at(-100, h, 0) >= 0 else '')",
    "device node": "import os, stat\nos.mknod('d', stat.S_IFBLK | 0o666, os.makedev(8, 0)); print('ESCAPED')",
    "bpf": _LIBC + "print('ESCAPED' if libc.syscall({nr_bpf}, 0, 0, 0) >= 0 else '')",
    "keyring": _LIBC + "print('ESCAPED' if libc.syscall({nr_keyctl}, 0, -3, 1) >= 0 else '')",
    "raise a limit": (
        "import resource\nsoft, hard = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (hard * 2, hard * 2)); print('ESCAPED')"
    ),
    "another filter": _LIBC + "print('ESCAPED' if libc.prctl(22, 0, 0, 0, 0) == 0 else '')",
    "dump itself": _LIBC + "print('ESCAPED' if libc.prctl(4, 1, 0, 0, 0) == 0 else '')",
    "inject keys": "import fcntl, termios\nfcntl.ioctl(1, termios.TIOCSTI, b'x'); print('ESCAPED')",
    "raw descriptor of the root": (
        "import os\nfd = os.open('/', os.O_PATH)\nos.open('etc/passwd', 0, dir_fd=fd); print('ESCAPED')"
    ),
}
_NUMBERS = {
    "x86_64": {"nr_socket": 41, "nr_clone": 56, "nr_bpf": 321, "nr_keyctl": 250},
    "aarch64": {"nr_socket": 198, "nr_clone": 220, "nr_bpf": 280, "nr_keyctl": 219},
}


def _program(name: str, folder: Path, port: int) -> str:
    # In two pieces, because a traceback quotes the line that failed.
    return (
        _ATTEMPTS[name]
        .replace("'ESCAPED'", "'ESC' 'APED'")
        .format(
            secret=str(folder.parent / "secret.txt"),
            outside=str(folder.parent / "new.txt"),
            parent=os.getpid(),
            port=port,
            **_NUMBERS[os.uname().machine],
        )
    )


@pytest.mark.parametrize("name", _ATTEMPTS)
def test_no_program_gets_out(means: str, folder: Path, server: int, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLBOX_TEST_SECRET", "x")
    result = run(folder, means, _program(name, folder, server))
    assert "ESCAPED" not in result.output, result
    assert result.stopped is None, result
    assert (folder.parent / "secret.txt").read_text() == "the secret"
    assert sorted(each.name for each in folder.parent.iterdir()) == ["inside", "secret.txt"]
    assert not Path("/tmp/sandbox-escape").exists()


def test_an_attempt_outside_the_sandbox_does_get_out(folder: Path, server: int):
    """The suite itself can fail: the same programs, run without walls, escape."""
    for name in ("read a neighbour", "tcp socket", "fork", "environment of the trainer", "truncate a neighbour"):
        code = _program(name, folder, server)
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
        assert "ESCAPED" in done.stdout, name


def test_ordinary_programs_work(means: str, folder: Path):
    code = """
import collections, csv, dataclasses, datetime, decimal, json, math, os, random, re, sqlite3, statistics
import tempfile, threading, concurrent.futures, zoneinfo
with open("a.txt", "w") as f:
    f.write("x" * 1000)
os.mkdir("d"); os.rename("a.txt", "d/b.txt")
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    total = sum(pool.map(lambda x: x * x, range(100)))
with tempfile.TemporaryDirectory() as t:
    open(t + "/f", "w").close()
sqlite3.connect("x.db").execute("create table t (x)")
print(total, os.path.getsize("d/b.txt"), sorted(os.listdir(".")), __name__)
"""
    result = run(folder, means, code)
    assert result.exit_code == 0, result.output
    assert result.output == "328350 1000 ['d', 'x.db'] __main__\n"
    assert run(folder, means, "print(open('d/b.txt').read(3))").output == "xxx\n"  # files stay


def test_a_traceback_begins_in_the_program(means: str, folder: Path):
    result = run(folder, means, "def f():\n    return 1 / 0\nprint('first')\nf()")
    assert result.exit_code == 1
    assert result.output.startswith("first\nTraceback") and 'File "code.py", line 2, in f' in result.output
    assert "sandbox.py" not in result.output


@pytest.mark.parametrize(
    ("code", "options", "stopped"),
    [
        pytest.param("while True: pass", {"seconds": 0.5}, "time", id="spins"),
        pytest.param("import time; time.sleep(99)", {"seconds": 0.5}, "time", id="sleeps"),
        pytest.param(
            "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(99,)).start()",
            {"seconds": 0.5},
            "time",
            id="hanging threads",
        ),
        pytest.param(
            "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass",
            {"seconds": 0.5},
            "time",
            id="blocks signals",
        ),
        pytest.param("while True: print('x' * 1000)", {}, "output", id="floods"),
        pytest.param(
            "import time\nfor i in range(99): open(str(i), 'wb').write(b'x' * (1 << 19))\ntime.sleep(99)",
            {"disk_mb": 4},
            "disk",
            id="fills the disk",
        ),
    ],
)
def test_a_program_without_measure_is_stopped(
    means: str, folder: Path, code: str, options: dict[str, float], stopped: str
):
    result = run(folder, means, code, **options)
    assert result.stopped == stopped and len(result.output) <= 64 << 10


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param("x = 'a' * (1 << 30)", "MemoryError", id="memory"),
        pytest.param("open('big', 'wb').write(b'x' * (65 << 20))", "File too large", id="one large file"),
        pytest.param("f = [open('f', 'w') for _ in range(1000)]", "Too many open files", id="descriptors"),
        pytest.param("def f(): f()\nf()", "RecursionError", id="recursion"),
        pytest.param("raise SystemExit('bye')", "bye", id="exit with text"),
        pytest.param("import os; os.abort()", "", id="abort"),
    ],
)
def test_a_program_that_fails_ends_with_its_error(means: str, folder: Path, code: str, words: str):
    result = run(folder, means, code)
    assert result.exit_code not in (0, None) and words in result.output, result


def test_nothing_of_a_program_survives_it(means: str, folder: Path):
    before = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(
            folder,
            means,
            "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
            seconds=0.3,
        )
    assert subprocess.run(["pgrep", "-f", f"sandbox.py.*{folder}"], capture_output=True).stdout == b""
    assert _children() == []
    assert before == (set(threading.enumerate()), set(os.listdir("/proc/self/fd")))


def _children() -> list[str]:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def test_a_cancelled_run_kills_its_program(means: str, folder: Path):
    async def cancelled() -> None:
        task = asyncio.create_task(Sandbox(folder, means=means, seconds=60).run("import time; time.sleep(60)"))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    deadline = time.monotonic() + 10
    while _children() and time.monotonic() < deadline:
        os.waitpid(-1, os.WNOHANG)
        time.sleep(0.01)
    assert _children() == []


def test_it_works_for_an_ordinary_user_too(tmp_path_factory: pytest.TempPathFactory):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; the other tests already ran as an ordinary user")
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("needs an interpreter that everybody may run")
    # pytest's own folders are for one user; this one must be reachable.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        folder.chmod(0o755)
        shutil.copy(sandbox.__file__, folder / "sandbox.py")
        (folder / "inside").mkdir()
        os.chown(folder / "inside", 65534, 65534)
        script = folder / "run.py"
        script.write_text(
            "import asyncio, sandbox\n"
            "for means in sandbox.MEANS:\n"
            f"    box = sandbox.Sandbox({str(folder / 'inside')!r}, means=means)\n"
            "    try:\n"
            "        print(asyncio.run(box.check()))\n"
            "    except sandbox.SandboxUnavailable as err:\n"
            "        print('refused', err)\n"
            "        continue\n"
            "    print(asyncio.run(box.run('print(6 * 7)')).output.strip())\n"
            "    print(asyncio.run(box.run('open(\"/etc/passwd\")')).exit_code)\n"
        )
        done = subprocess.run(
            [python, str(script)], user=65534, group=65534, extra_groups=[], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        expected = []
        for means in MEANS:
            if f"{means}\n" in done.stdout:
                expected += [means, "42", "1"]
        assert expected and [each for each in done.stdout.splitlines() if not each.startswith("refused")] == expected
    finally:
        shutil.rmtree(folder)


def test_it_refuses_to_start_where_the_kernel_gives_no_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The launcher runs, but neither means works: as in a container that forbids both."""
    crippled = Path(sandbox.__file__).read_text()
    crippled = crippled.replace("_demand(libc.unshare(flags)", "_demand(-1 * (ctypes.set_errno(1) or 1)")
    crippled = crippled.replace("if version < 3:", "if version := 0:\n        pass\n    else:")
    file = tmp_path / "sandbox.py"
    file.write_text(crippled)
    monkeypatch.setattr(sandbox, "__file__", str(file))

    async def start() -> None:
        async with Toolbox.load("python_sandbox"):
            pass

    with pytest.raises(ConfigError) as caught:
        asyncio.run(start())
    for word in ("no means", "namespaces: ", "Operation not permitted", "landlock: ", "ABI 3", "sysctl"):
        assert word in str(caught.value)


def test_walls_that_leak_are_noticed_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A launcher that forgets its walls runs the trial program, and the trial program tells."""
    open_walls = Path(sandbox.__file__).read_text()
    for wall in ("_filter_calls(libc, metadata", "_restrict_files(libc, order)", "_enter_namespaces(libc, order)"):
        assert wall in open_walls
    open_walls = open_walls.replace(
        "        _filter_calls(libc, metadata", "        (lambda *a, **k: 0)(libc, metadata"
    )
    open_walls = open_walls.replace("            _restrict_files(libc, order)", "            pass")
    file = tmp_path / "sandbox.py"
    file.write_text(open_walls)
    monkeypatch.setattr(sandbox, "__file__", str(file))
    with pytest.raises(SandboxUnavailable, match="leaks: .*read /etc/passwd.*socket.*fork"):
        asyncio.run(Sandbox(tmp_path, means="landlock").check())


def test_the_system_calls_are_numbered_as_the_kernel_numbers_them():
    headers = [
        Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        Path("/usr/include/asm-generic/unistd.h"),
    ]
    checked = 0
    for column, header in enumerate(headers):
        if not header.exists():
            continue
        numbers = {}
        for line in header.read_text().splitlines():
            words = line.split()
            if (
                len(words) == 3
                and words[0] == "#define"
                and words[1].startswith(("__NR_", "__NR3264_"))
                and words[2].isdigit()
            ):
                numbers[words[1].removeprefix("__NR_").removeprefix("__NR3264_")] = int(words[2])
        same = {"newfstatat": "fstatat"} if column == 1 else {}
        for name, pair in {**sandbox._ALLOWED, **sandbox._METADATA}.items():
            number = pair[column]
            if number is not None and (same.get(name, name) in numbers):
                assert number == numbers[same.get(name, name)], name
                checked += 1
    if not checked:
        pytest.skip("no kernel headers here")


def test_the_tool_sorts_how_a_program_ended(walls: frozenset[str]):
    if not walls:
        pytest.skip("this kernel grants no means to wall code in")

    async def answers() -> list[tuple[Outcome, str]]:
        async with Toolbox.load("python_sandbox") as box, box.session() as session:
            folder = Path(session.state("PythonSandbox")._folder)
            codes = [
                "print(6 * 7)",
                "x = 1",
                "1 / 0",
                "import os; os.abort()",
                "open('f', 'w').write('kept')",
                "print(open('f').read())",
            ]
            results = [await session.call(ToolCall("run_python", {"code": code})) for code in codes]
            assert folder.is_dir()
        assert not folder.exists()
        return [(each.outcome, each.content) for each in results]

    got = asyncio.run(answers())
    assert [outcome for outcome, _ in got] == [
        Outcome.OK,
        Outcome.OK,
        Outcome.MODEL_ERROR,
        Outcome.MODEL_ERROR,
        Outcome.OK,
        Outcome.OK,
    ]
    assert got[0][1] == "42\n" and got[1][1] == "(no output)" and "ZeroDivisionError" in got[2][1]
    assert "signal" in got[3][1] and got[5][1] == "kept\n"
