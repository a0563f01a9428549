"""A place to run code that nobody trusts: own process, limits, no network, no files outside one folder.

Linux only, standard library only, no setuid helper, no container runtime; works for root and for ordinary users. Two
means, the first that the kernel grants is taken, and a sandbox refuses to start where it grants neither:

    namespaces  own user, mount, pid, network, ipc and uts namespace. The file system holds the interpreter and the
                system libraries, read-only, and the folder; nothing else exists.
    landlock    for containers that forbid namespaces (Docker's default). Landlock (ABI 3 or newer) grants reading of
                the interpreter and the libraries and everything in the folder. Names and sizes of other files can be
                seen with `stat`, their content cannot.

Both then drop all capabilities, set no_new_privs and resource limits, and install a seccomp filter that lists what is
allowed: no sockets, no new processes, no exec, no mount, no ptrace, no signals to others. The code is one process with
threads; `subprocess` and `multiprocessing` do not work in it.

The file runs in two roles: `Sandbox` in the trainer, and, executed as a script in a fresh interpreter, the launcher
that walls itself in and then runs the code. Kernel interfaces: user_namespaces(7), landlock(7),
seccomp(2), pivot_root(2).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunResult", "Sandbox", "SandboxUnavailable"]

MEANS = ("namespaces", "landlock")


class SandboxUnavailable(RuntimeError):
    """The kernel gives no means to wall code in; the text says what was tried and what to do."""


@dataclass(frozen=True)
class RunResult:
    """How a program ended."""

    output: str
    """What it printed to stdout and stderr, in the order written, at most `output_bytes`."""
    exit_code: int | None
    """Its exit status, negative for a signal; None where it was stopped."""
    stopped: str | None
    """Why it was stopped: `time`, `output`, `disk`; None where it ended by itself."""
    seconds: float
    """Wall-clock time."""


class Sandbox:
    """Runs Python programs walled in, one fresh interpreter each, in a folder that outlives them.

    Args:
        folder: The one place the program can write to; must exist and is the caller's to delete.
        means: `namespaces`, `landlock`, or None for the first that works.
        seconds: Wall-clock time of a program; its processor time is limited to the same.
        memory_mb: Address space in MiB.
        disk_mb: Size of one file, and of the whole folder.
        output_bytes: What it may print before it is stopped.
        read_only: Further folders it may read, for example a site-packages with numpy.
        python: Interpreter to run.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        means: str | None = None,
        seconds: float = 10.0,
        memory_mb: int = 512,
        disk_mb: int = 64,
        output_bytes: int = 64 << 10,
        read_only: Sequence[str | Path] = (),
        python: str = sys.executable,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.seconds, self.memory_mb, self.disk_mb, self.output_bytes = seconds, memory_mb, disk_mb, output_bytes
        self.read_only = [str(Path(each).resolve()) for each in read_only]
        # The interpreter itself, not the link of a virtual environment: the sandbox sees the standard library only.
        self.python = str(Path(python).resolve())
        self.means = means

    async def check(self) -> str:
        """Return the means that works here, after a program in it has failed to reach the outside.

        Raises:
            SandboxUnavailable: If none does.
        """
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable(f"the sandbox needs Linux; this is {sys.platform}")
        reasons = []
        for means in (self.means,) if self.means else MEANS:
            trial = Sandbox(self.folder, means=means, seconds=20.0, memory_mb=512, python=self.python)
            try:
                result = await trial.run(_TRIAL)
            except SandboxUnavailable as err:
                reasons.append(f"{means}: {err}")
                continue
            if result.output.strip() == "walled in":
                self.means = means
                return means
            reasons.append(f"{means}: the trial program said {result.output.strip()[-300:]!r}")
        raise SandboxUnavailable(
            "this kernel gives no means to wall code in. "
            + "; ".join(reasons)
            + ". Allow unprivileged user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) or run Linux "
            "6.2 or newer with Landlock enabled (lsm=landlock,...)"
        )

    async def run(self, code: str) -> RunResult:
        """Run a program to its end or to a limit; whatever it started is gone afterwards.

        Raises:
            SandboxUnavailable: If the walls could not be built; the code was not run.
        """
        if self.means is None:
            await self.check()
        loop = asyncio.get_running_loop()
        started = loop.time()
        order = {
            "means": self.means,
            "folder": str(self.folder),
            "memory": self.memory_mb << 20,
            "disk": self.disk_mb << 20,
            "cpu": max(1, int(self.seconds + 1)),
            "read_only": [*_interpreter_folders(self.python), *self.read_only],
        }
        status_read, status_write = os.pipe()
        output_read, output_write = os.pipe()
        os.set_blocking(status_read, False)
        os.set_blocking(output_read, False)
        try:
            process = subprocess.Popen(
                [self.python, "-I", "-S", "-B", str(Path(__file__).resolve()), str(status_write)],
                stdin=subprocess.PIPE,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(status_write,),
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                cwd=self.folder,
                start_new_session=True,
            )
        except OSError as err:
            os.close(status_read)
            os.close(output_read)
            raise SandboxUnavailable(f"cannot start {self.python}: {err}") from err
        finally:
            os.close(status_write)
            os.close(output_write)
        try:
            await _feed(process, json.dumps(order).encode() + b"\n" + code.encode("utf-8", "replace"))
            status = await _read_all(status_read, 10_000)
            if status.strip() != b"ready":
                said = (_read_some(output_read) or b"")[-500:]
                raise SandboxUnavailable((status or said).decode(errors="replace").strip() or "the launcher died")
            output, stopped = await self._watch(process, output_read, loop.time() + self.seconds)
            text = output.decode(errors="replace")
            exit_code = None if stopped else await _wait(process)
            return RunResult(text, exit_code, stopped, loop.time() - started)
        finally:
            _kill(process)
            os.close(status_read)
            os.close(output_read)
            await _wait(process)

    async def _watch(self, process: subprocess.Popen[bytes], pipe: int, until: float) -> tuple[bytes, str | None]:
        """Collect output until the program ends or a limit is reached."""
        loop, data, ended = asyncio.get_running_loop(), bytearray(), False
        check_disk = 0.0
        while not ended:
            now = loop.time()
            if now >= until:
                return bytes(data), "time"
            if now >= check_disk:
                if _size(self.folder) > (self.disk_mb + 1) << 20:  # one file may be disk_mb, and folders take room
                    return bytes(data), "disk"
                check_disk = now + 0.25
            await _readable(pipe, min(until, check_disk) - now)
            chunk = _read_some(pipe)
            if chunk is not None:
                ended = not chunk
                data += chunk
            if len(data) > self.output_bytes:
                return bytes(data[: self.output_bytes]), "output"
        return bytes(data), None


# What a program must fail at before the sandbox counts as working.
_TRIAL = """
import os, socket
def works(action):
    try:
        action()
    except (OSError, PermissionError):
        return False
    return True
leaks = [name for name, action in {
    "read /etc/passwd": lambda: open("/etc/passwd").read(),
    "list /": lambda: [os.listdir(each) for each in ("/home", "/root", "/var", "/etc")],
    "write /tmp": lambda: open("/tmp/sandbox-leak", "w").close(),
    "write /": lambda: open("/sandbox-leak", "w").close(),
    "socket": lambda: socket.socket(),
    "fork": lambda: os.fork() or os._exit(0),
}.items() if works(action)]
open("trial", "w").write("x"); os.remove("trial")
print("leaks: " + ", ".join(leaks) if leaks else "walled in")
"""


def _interpreter_folders(python: str) -> list[str]:
    """What an interpreter needs to read: its installation, and the system's libraries."""
    base = Path(python).resolve().parent.parent
    folders = [sysconfig.get_path("stdlib"), *(str(base / each) for each in ("lib", "bin", "lib64"))]
    if str(base) == "/usr":
        folders = []
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/bin", "/usr/share/zoneinfo"]
    system += ["/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"]
    return list(dict.fromkeys(each for each in [*folders, *system] if each and os.path.exists(each)))


def _size(folder: Path) -> int:
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    total += 512
        except OSError:
            continue
    return total


async def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    os.set_blocking(pipe, False)
    sent = 0
    try:
        while sent < len(data):
            try:
                sent += os.write(pipe, data[sent : sent + 65536])
            except BlockingIOError:
                await asyncio.sleep(0.001)
    except BrokenPipeError:
        pass  # it died; the status pipe says why
    finally:
        process.stdin.close()


async def _readable(pipe: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(pipe, wake)
    timer = loop.call_later(max(seconds, 0.0), wake)
    try:
        await ready
    finally:
        timer.cancel()
        loop.remove_reader(pipe)


def _read_some(pipe: int) -> bytes | None:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return None


async def _read_all(pipe: int, limit: int) -> bytes:
    data = bytearray()
    loop = asyncio.get_running_loop()
    until = loop.time() + 60.0
    while len(data) < limit and loop.time() < until:
        await _readable(pipe, until - loop.time())
        chunk = _read_some(pipe)
        if chunk == b"":
            break
        data += chunk or b""
    return bytes(data)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher, and through its death signal everything inside
    except (ProcessLookupError, PermissionError):
        pass


async def _wait(process: subprocess.Popen[bytes]) -> int | None:
    pause = 0.001
    for _ in range(400):
        if process.poll() is not None:
            return process.returncode
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The launcher. From here on everything runs in the fresh interpreter.

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECCOMP = 1, 38, 4, 24, 22
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

# Calls whose number is the same on every architecture since they were added late.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

# What a single-process Python program with threads needs, by name, for x86-64 and arm64 (None: does not exist there).
# Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fcntl": (72, 25), "flock": (73, 32),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17),
    "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "unlink": (87, None), "symlink": (88, None), "readlink": (89, None), "umask": (95, 166),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150),
    "sigaltstack": (131, 132), "statfs": (137, 43), "fstatfs": (138, 44), "arch_prctl": (158, None),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_setaffinity": (203, 122),
    "sched_getaffinity": (204, 123), "epoll_create": (213, None), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "epoll_wait": (232, None), "epoll_ctl": (233, 21), "openat": (257, 56), "mkdirat": (258, 34),
    "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38), "symlinkat": (266, 36),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "epoll_pwait": (281, 22), "eventfd": (284, None),
    "fallocate": (285, 47), "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59),
    "renameat2": (316, 276), "getrandom": (318, 278), "memfd_create": (319, 279), "membarrier": (324, 283),
    "copy_file_range": (326, 285), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
    "epoll_pwait2": (441, 441), "futex_waitv": (449, 449),
}  # fmt: skip
# Attributes of files. Landlock does not guard them, so they are allowed only where other files do not exist.
_METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "link": (86, None), "linkat": (265, 37), "truncate": (76, 45),
}  # fmt: skip
_CLONE, _CLONE3, _TGKILL, _PRLIMIT, _IOCTL, _PRCTL = (56, 220), (435, 435), (234, 131), (302, 261), (16, 29), (157, 167)
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _demand(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _launch(status: int) -> None:
    """Read the order and the code from stdin, build the walls, say `ready`, run the code."""
    raw = b""
    while chunk := os.read(0, 1 << 16):
        raw += chunk
    first, _, code = raw.partition(b"\n")
    order = json.loads(first)
    try:
        libc = _libc()
        _demand(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
        if order["means"] == "namespaces":
            _enter_namespaces(libc, order)
        else:
            os.chdir(order["folder"])
        _close_all_but({0, 1, 2, status})
        _limit(order)
        _drop_privileges(libc)
        if order["means"] == "landlock":
            _restrict_files(libc, order)
        _filter_calls(libc, metadata=order["means"] == "namespaces")
    except (OSError, ValueError, KeyError, AttributeError) as err:
        os.write(status, f"{type(err).__name__}: {err}"[:2000].encode())
        os._exit(70)
    os.write(status, b"ready\n")
    os.close(status)
    _execute(code.decode("utf-8", "replace"))


def _execute(code: str) -> None:
    """Run the program as `__main__`, with a traceback that begins in it."""
    import threading
    import traceback
    import types

    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv, sys.path[:] = ["code.py"], [os.getcwd(), *(each for each in sys.path if os.path.isabs(each))]
    status = 0
    try:
        import linecache

        linecache.cache["code.py"] = (len(code), None, code.splitlines(True), "code.py")
        exec(compile(code, "code.py", "exec"), main.__dict__)
    except SystemExit as err:
        status = err.code if isinstance(err.code, int) else 0 if err.code is None else 1
        if isinstance(err.code, str):
            print(err.code, file=sys.stderr)
    except BaseException as err:
        status = 1
        trace = err.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != "code.py":
            trace = trace.tb_next
        sys.stdout.flush()
        traceback.print_exception(type(err), err, trace)
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def _enter_namespaces(libc: ctypes.CDLL, order: dict[str, object]) -> None:
    """Become process 1 of a world that holds the interpreter, the libraries and the folder."""
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    _demand(libc.unshare(flags), "user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")
    child = os.fork()
    if child:
        _follow(child)
    _demand(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
    _build_root(libc, order)


def _follow(child: int) -> None:
    """In the outer process: wait, and end as the inner one did."""
    _close_all_but({0, 1, 2})
    os.close(1)
    os.close(2)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _mount(
    libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    encoded = [None if each is None else os.fsencode(each) for each in (source, target, kind, data)]
    _demand(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def _build_root(libc: ctypes.CDLL, order: dict[str, object]) -> None:
    folder = str(order["folder"])
    inside = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    _mount(libc, None, "/", None, _MS_REC | _MS_PRIVATE)
    # The new root hides the folder's own place; the folder stays reachable through its descriptor.
    root = folder
    _mount(libc, "tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for source in order["read_only"]:  # type: ignore[attr-defined]
        _mirror(libc, source, root)
    place = root + "/sandbox"
    os.mkdir(place)
    _mount(libc, f"/proc/self/fd/{inside}", place, None, _MS_BIND)
    _mount(libc, None, place, None, _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_NODEV | _kept_flags(place))
    os.close(inside)
    os.mkdir(root + "/old")
    os.chdir(root)
    _demand(libc.syscall(_number(155, 41), b".", b"old"), "pivot_root")
    _demand(libc.umount2(b"/old", _MNT_DETACH), "umount")
    os.rmdir("/old")
    _mount(libc, None, "/", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/sandbox")


def _mirror(libc: ctypes.CDLL, source: str, root: str) -> None:
    """Make one file or folder of the outside exist, read-only; a link such as /lib stays a link."""
    target = root + source
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    try:
        _mount(libc, source, target, None, _MS_BIND | _MS_REC)
    except OSError:
        if source.startswith("/dev/"):
            return  # some containers forbid it, and the program can do without
        raise
    # struct mount_attr {attr_set, attr_clr, propagation, userns_fd}; MOUNT_ATTR_RDONLY is 1, NOSUID 2; the whole tree.
    readonly = struct.pack("QQQQ", 1 | 2, 0, 0, 0)
    if libc.syscall(_MOUNT_SETATTR, -1, os.fsencode(target), 0x8000, readonly, len(readonly)) < 0:
        _mount(libc, None, target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _kept_flags(target))


def _kept_flags(path: str) -> int:
    """Flags of a mount that a user namespace may not take away."""
    return os.statvfs(path).f_flag & (_MS_NOSUID | _MS_NODEV | 8 | 1024 | 2048)


def _number(x86: int, arm: int) -> int:
    return x86 if platform.machine() == "x86_64" else arm


def _close_all_but(keep: set[int]) -> None:
    edges = [-1, *sorted(keep), 1 << 16]
    for low, high in zip(edges, edges[1:]):
        if low + 1 < high:  # CPython 3.11 takes an empty range for everything
            os.closerange(low + 1, high)


def _limit(order: dict[str, object]) -> None:
    # Through the descriptors of its input it could read nothing more, but it must not be the terminal's either.
    try:
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    except OSError:
        pass  # some containers forbid it; the pipe on descriptor 0 is at its end
    memory, disk, cpu = int(order["memory"]), int(order["disk"]), int(order["cpu"])  # type: ignore[call-overload]
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NOFILE, 128),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an OSError then


def _drop_privileges(libc: ctypes.CDLL) -> None:
    """Give every capability up for good, also root's own."""
    _demand(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last one and without CAP_SETPCAP
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    _demand(libc.syscall(_number(126, 91), header, nothing), "capset")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


# Landlock rights of ABI 3: 13 of ABI 1, REFER, TRUNCATE.
_READ = 1 | 1 << 2 | 1 << 3  # execute, read file, read folder
_ALL_FILES = (1 << 15) - 1
_ON_FILE = 1 | 1 << 1 | 1 << 2 | 1 << 14


def _restrict_files(libc: ctypes.CDLL, order: dict[str, object]) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 3:
        raise OSError(_ENOSYS, f"Landlock ABI 3 is needed, this kernel has {max(version, 0)}")
    handled = _ALL_FILES | (1 << 15 if version >= 5 else 0)  # device ioctl
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0  # abstract unix sockets, signals
    attributes = struct.pack("QQQ", handled, network, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _demand(libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0), "landlock")
    for path, rights in [*((each, _READ) for each in order["read_only"]), (order["folder"], _ALL_FILES)]:  # type: ignore[attr-defined]
        rights = rights if os.path.isdir(path) else rights & _ON_FILE | (2 if path == "/dev/null" else 0)
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _demand(libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0), f"landlock {path}")
        os.close(place)
    _demand(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def _filter_calls(libc: ctypes.CDLL, *, metadata: bool) -> None:
    """Install the seccomp filter; see `_ALLOWED`."""
    machine = platform.machine()
    if machine not in _AUDIT:
        raise OSError(_ENOSYS, f"no list of system calls for {machine}")
    column = 0 if machine == "x86_64" else 1
    table = {**_ALLOWED, **(_METADATA if metadata else {})}
    program = _seccomp_program(
        audit=_AUDIT[machine],
        allowed=sorted(number for number in (numbers[column] for numbers in table.values()) if number is not None),
        column=column,
        pid=os.getpid(),
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _demand(libc.prctl(_PR_SET_SECCOMP, 2, filter_program, 0, 0), "seccomp")


def _seccomp_program(*, audit: int, allowed: Sequence[int], column: int, pid: int) -> bytes:
    """Assemble the filter in classic BPF.

    Allowed calls pass. `clone` passes for threads, `tgkill` for the own process, `prlimit64` for reading, `ioctl` for
    the four requests that files need, `prctl` for thread names. `clone3` is said not to exist, so that the C library
    falls back to `clone`, whose flags can be looked at. The rest is not permitted; a foreign architecture is killed.
    """
    load, jump_eq, jump_ge, jump_set, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, errno, kill = 0x7FFF0000, 0x00050000, 0x80000000
    out: list[tuple[int, int, int, int]] = []

    def emit(code: int, k: int, yes: int = 0, no: int = 0) -> None:
        out.append((code, yes, no, k))

    def argument(index: int) -> int:
        return 16 + 8 * index  # low half, little endian

    emit(load, 4)
    emit(jump_eq, audit, 1, 0)
    emit(give, kill)
    emit(load, 0)
    if column == 0:  # the x32 variants of the calls
        emit(jump_ge, 0x40000000, 0, 1)
        emit(give, kill)
    for number in allowed:
        emit(jump_eq, number, 0, 1)
        emit(give, allow)
    emit(jump_eq, _CLONE3[column], 0, 1)
    emit(give, errno | _ENOSYS)
    special: list[tuple[int, list[tuple[int, int, int]]]] = [
        (_CLONE[column], [(argument(0), jump_set, _CLONE_THREAD)]),
        (_TGKILL[column], [(argument(0), jump_eq, pid)]),
        (_PRLIMIT[column], [(argument(2), jump_eq, 0), (argument(2) + 4, jump_eq, 0)]),
        (_PRCTL[column], [(argument(0), jump_eq, 15)]),
        *((_IOCTL[column], [(argument(1), jump_eq, request)]) for request in (0x5401, 0x5450, 0x5451, 0x5421, 0x541B)),
    ]
    for number, tests in special:
        emit(jump_eq, number, 0, 2 * len(tests) + 1)
        for position, (offset, test, value) in enumerate(tests):
            emit(load, offset)
            emit(test, value, 0, 2 * (len(tests) - position - 1) + 1)
        emit(give, allow)
        emit(load, 0)
    emit(give, errno | _EPERM)
    return b"".join(struct.pack("HBBI", *each) for each in out)


if __name__ == "__main__":
    _launch(int(sys.argv[1]))
