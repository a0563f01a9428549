"""A run leaves nothing behind, however it ends.

The trainer is a stand-in with everything that makes process trees hard to end: children that ignore SIGTERM, daemons
that forked twice and left the session, one of them with an empty environment, one renamed as vLLM renames its engine,
shared memory in use. The launcher and the keeper are the real ones. Whether a process is gone is asked of /proc by the
ids that the stand-in wrote down, not of the code under test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STAND_IN = """
import json, os, signal, sys, time
from multiprocessing import resource_tracker, shared_memory
import setproctitle

mode, notes = sys.argv[1], sys.argv[2]

def note(name):
    start = open(f"/proc/{os.getpid()}/stat").read().rsplit(")", 1)[1].split()[19]
    with open(notes, "a") as file:
        file.write(f"{name} {os.getpid()} {start}\\n")

def wait_for_the_keeper():
    # The keeper looks once a second, later where the machine is busy; what it never saw it cannot remove.
    run = os.path.join(os.path.dirname(os.environ["VERL_FILE_LOGGER_PATH"]), "run.json")
    while not json.load(open(run))["attempts"][-1].get("segments"):
        time.sleep(0.1)

def child(name, *, twice=False, empty=False, deaf=False, title=None):
    if os.fork():
        return
    if twice:
        os.setsid()
        if os.fork():
            os._exit(0)
    if empty:
        os.execve(sys.executable, [sys.executable, __file__, "sleep", notes, name], {})
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if title:
        setproctitle.setproctitle(title)
    note(name)
    time.sleep(600)
    os._exit(0)

if mode == "sleep":
    note(sys.argv[3])
    time.sleep(600)
    sys.exit()

child("plain")
child("deaf", deaf=True)
child("daemon", twice=True)
child("deaf daemon", twice=True, deaf=True)
child("daemon without environment", twice=True, empty=True)
child("engine", title="VLLM::EngineCore")
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
with open(notes, "a") as file:
    file.write(f"segment {memory._name.lstrip('/')} -\\n")
note("trainer")
while len(open(notes).readlines()) < 8:
    time.sleep(0.05)
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    data = {"training/global_step": 1, "critic/score/mean": 0.5, "reward/format/mean": 0.25, "timing_s/step": 2.0}
    file.write(json.dumps({"step": 1, "data": data}) + "\\n")
print("Training Progress:   0%|          | 0/2 [00:00<?, ?it/s]")
if mode == "finish":
    wait_for_the_keeper()
    sys.exit(0)
if mode == "fail":
    wait_for_the_keeper()
    raise RuntimeError("the engine could not be started")
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""

DRIVER = """
import os, sys
from pathlib import Path
from verl_toolrl.launch.command import Command, run_variables
from verl_toolrl.launch.console import LastingConsole
from verl_toolrl.launch.launcher import Plan, execute, report
from verl_toolrl.launch.recipes import Composed
from verl_toolrl.launch.runs import claim, new_run

folder, stand_in, mode, notes = sys.argv[1:]
run = new_run(Path(folder), "stand/in", ["a=1"])
claim(run)
command = Command(
    [sys.executable, stand_in, mode, notes],
    {"VERL_FILE_LOGGER_PATH": str(run.file("metrics.jsonl"))},
    run_variables(run, own_ray="RAY_ADDRESS" not in os.environ),
)
plan = Plan(run=run, command=command, composed=Composed({}), total_steps=2, cluster=None, resume_step=None)
console = LastingConsole(width=200)
sys.exit(report(*execute(plan, console, patience=1.0), plan, console))
"""


class StandIn:
    """A launcher with the stand-in below it."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes.txt"
        self.run_folder = folder / "run"
        self.output = folder / "output.txt"
        self.stand_in, self.driver = folder / "stand_in.py", folder / "driver.py"
        self.stand_in.write_text(STAND_IN)
        self.driver.write_text(DRIVER)

    def argv(self, mode: str) -> list[str]:
        """Command line of the launcher."""
        return [sys.executable, *map(str, (self.driver, self.run_folder, self.stand_in, mode, self.notes))]

    def launch(self, mode: str, *, wrapper: str | None = None, piped: bool = False) -> subprocess.Popen[bytes]:
        """Start it, if asked for below a shell or into a pipe, and wait until the whole tree is up."""
        argv = self.argv(mode) if wrapper is None else ["bash", "-c", wrapper, "bash", *self.argv(mode)]
        with open(self.output, "wb") as output:
            to = subprocess.PIPE if piped else output
            errors = output if piped else subprocess.STDOUT
            launcher = subprocess.Popen(argv, stdout=to, stderr=errors, start_new_session=True)
        wait_for(lambda: (self.run_folder / "metrics.jsonl").exists() and len(self.members()) >= 7, self.output)
        return launcher

    def members(self) -> dict[str, tuple[int, str]]:
        """Name of each process of the stand-in -> (id, start time)."""
        lines = [line.rsplit(" ", 2) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return {name: (int(pid), start) for name, pid, start in lines if name != "segment"}

    @property
    def segment(self) -> Path:
        """The shared memory segment of the stand-in."""
        return Path("/dev/shm") / next(
            line.split()[1] for line in self.notes.read_text().splitlines() if line.startswith("segment ")
        )

    def alive(self) -> list[str]:
        """Names of the processes that still run, the keeper included."""
        found = [name for name, who in self.members().items() if is_alive(*who)]
        keeper = self.marker().get("keeper")
        return found + (["keeper"] if keeper and is_alive(keeper["pid"], str(keeper["start"])) else [])

    def marker(self) -> dict:
        """The newest attempt in run.json."""
        return json.loads((self.run_folder / "run.json").read_text())["attempts"][-1]

    def watched(self) -> set[int]:
        """The processes whose end the keeper would hear of: those that it holds a pidfd of."""
        pids = set()
        for path in Path(f"/proc/{self.marker()['keeper']['pid']}/fdinfo").iterdir():
            with contextlib.suppress(OSError):  # others come and go while the keeper looks around
                pids |= {int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pid:")}
        return pids

    def wait_until_gone(self) -> None:
        """Wait until no process is left; the limit is far above what it takes, as the machine may be busy."""
        wait_for(lambda: not self.alive(), self.output, what=self.alive)
        wait_for(lambda: self.marker()["state"] not in ("starting", "running"), self.output)
        assert not self.segment.exists()


def is_alive(pid: int, start: str) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[19] == start and fields[0] not in "ZX"


def wait_for(condition: Callable[[], object], output: Path, *, what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"{what()} {output.read_text()}"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def signals_of_a_terminal() -> Iterator[None]:
    """Tests that were started with `nohup` or `&` hand ignored signals on, and a launcher keeps to them."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    tree = StandIn(tmp_path)
    yield tree
    for pid, start in tree.members().values():
        if is_alive(pid, start):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("mode", "signals", "code", "state"),
    [
        pytest.param("run", ["SIGINT"], 130, "interrupted", id="ctrl-c"),
        pytest.param("deaf", ["SIGINT", "SIGINT"], 130, "interrupted", id="ctrl-c twice, trainer deaf to SIGTERM"),
        pytest.param("deaf", ["SIGTERM"], 143, "interrupted", id="SIGTERM, trainer deaf to it"),
        pytest.param("run", ["SIGHUP"], 129, "interrupted", id="terminal closed"),
        pytest.param("finish", [], 0, "finished", id="the trainer ends and leaves its tree"),
        pytest.param("fail", [], 3, "failed", id="the trainer fails"),
    ],
)
def test_no_process_outlives_a_run(stand_in: StandIn, mode: str, signals: list[str], code: int, state: str) -> None:
    launcher = stand_in.launch(mode)
    for name in signals:
        launcher.send_signal(signal.Signals[name])
        time.sleep(0.5)
    assert code == launcher.wait(90), stand_in.output.read_text()
    stand_in.wait_until_gone()
    assert state == stand_in.marker()["state"]


@pytest.mark.parametrize(
    ("mode", "signals", "code", "outcome"),
    [
        pytest.param("run", ["SIGINT"], 130, ("interrupted", "SIGINT"), id="ctrl-c ends both"),
        pytest.param("finish", [], 0, ("finished", ""), id="the reader alone ends"),
    ],
)
def test_a_run_does_not_depend_on_who_reads_what_is_drawn(
    stand_in: StandIn, mode: str, signals: list[str], code: int, outcome: tuple[str, str]
) -> None:
    """`... | tee log`: Ctrl-C ends tee as well, and before the launcher has written its last lines."""
    launcher = stand_in.launch(mode, piped=True)
    assert launcher.stdout is not None
    launcher.stdout.close()
    for name in signals:
        launcher.send_signal(signal.Signals[name])
    assert code == launcher.wait(90), stand_in.output.read_text()
    stand_in.wait_until_gone()
    assert outcome == (stand_in.marker()["state"], stand_in.marker()["reason"])
    assert stand_in.output.read_text() == ""


def test_a_killed_launcher_takes_the_run_with_it(stand_in: StandIn) -> None:
    launcher = stand_in.launch("run")
    launcher.kill()
    launcher.wait()
    stand_in.wait_until_gone()
    assert ("interrupted", "launcher-gone") == (stand_in.marker()["state"], stand_in.marker()["reason"])


def test_a_killed_keeper_is_replaced_by_the_launcher(stand_in: StandIn) -> None:
    launcher = stand_in.launch("run")
    wait_for(lambda: stand_in.marker()["segments"], stand_in.output)  # the keeper looks once a second
    os.kill(stand_in.marker()["keeper"]["pid"], signal.SIGKILL)
    assert launcher.wait(90) == 3
    stand_in.wait_until_gone()
    assert "keeper" in stand_in.output.read_text()


def test_stop_finds_what_is_left_when_launcher_and_keeper_were_killed(stand_in: StandIn) -> None:
    launcher = stand_in.launch("deaf")
    run_id = json.loads((stand_in.run_folder / "run.json").read_text())["id"]
    wait_for(lambda: stand_in.marker()["segments"], stand_in.output)
    os.kill(launcher.pid, signal.SIGSTOP)  # so that it cannot stand in for the keeper
    os.kill(stand_in.marker()["keeper"]["pid"], signal.SIGKILL)
    launcher.kill()
    launcher.wait()
    left = set(stand_in.alive())
    assert {"daemon", "deaf daemon", "engine"} <= left
    stop = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.cli", "stop", run_id], capture_output=True, text=True, timeout=90
    )
    assert stop.returncode == 0, stop.stderr
    assert "VLLM::EngineCore" in stop.stdout
    # The one that threw its environment away lost its parents as well: nothing links it to the run any more.
    assert set(stand_in.alive()) <= {"daemon without environment"}
    assert not stand_in.segment.exists()
    assert stand_in.marker()["reason"] == "stopped"


def test_stop_tidies_up_after_a_run_of_which_everything_was_killed(stand_in: StandIn) -> None:
    launcher = stand_in.launch("run")
    wait_for(lambda: stand_in.marker()["segments"], stand_in.output)
    os.kill(launcher.pid, signal.SIGSTOP)
    for pid in (stand_in.marker()["keeper"]["pid"], *(pid for pid, _ in stand_in.members().values())):
        os.kill(pid, signal.SIGKILL)
    launcher.kill()
    launcher.wait()
    assert stand_in.segment.exists()
    stop = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.cli", "stop", str(stand_in.run_folder)], capture_output=True, text=True
    )
    assert stop.returncode == 0, stop.stderr
    assert not stand_in.segment.exists()
    assert ("interrupted", "stopped") == (stand_in.marker()["state"], stand_in.marker()["reason"])


def test_a_dead_engine_ends_a_trainer_that_waits_for_it(stand_in: StandIn) -> None:
    launcher = stand_in.launch("run")
    engine = stand_in.members()["engine"][0]
    # The keeper looks once a second, and has to have seen the engine alive and under its own title.
    wait_for(lambda: engine in stand_in.watched(), stand_in.output)
    os.kill(engine, signal.SIGKILL)
    assert launcher.wait(90) == 3
    stand_in.wait_until_gone()
    assert "VLLM::EngineCore" in stand_in.marker()["reason"]


def test_a_run_ends_with_the_script_that_started_it(stand_in: StandIn) -> None:
    script = stand_in.launch("run", wrapper='"$@"; echo never')
    script.kill()
    script.wait()
    stand_in.wait_until_gone()
    assert stand_in.marker()["reason"] == "parent-gone"


def test_a_run_under_nohup_outlives_its_shell(stand_in: StandIn) -> None:
    script = stand_in.launch("run", wrapper='nohup "$@" & sleep 600')
    script.kill()
    script.wait()
    time.sleep(3)
    assert len(stand_in.alive()) == 8, stand_in.output.read_text()
    run = subprocess.run(
        [sys.executable, "-m", "verl_toolrl.cli", "stop", str(stand_in.run_folder)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    stand_in.wait_until_gone()


def test_progress_and_the_way_to_resume_are_told(stand_in: StandIn) -> None:
    stand_in.launch("fail").wait(90)
    text = stand_in.output.read_text()
    assert "step 1/2  reward 0.500 (format 0.25)  2.0 s" in text
    assert "RuntimeError: the engine could not be started" in text
    assert f"verl-toolrl train stand/in a=1 --output {stand_in.run_folder} --resume" in textwrap.dedent(text)


RAY_TRAINER = """
import json, os, sys, time
import ray

mode, notes = sys.argv[1], sys.argv[2]
own = {} if mode == "join" else dict(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
context = ray.init(**own)

@ray.remote(num_cpus=0)
class WorkerDict:
    def pid(self):
        return os.getpid(), open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]

@ray.remote(num_cpus=0)
class TaskRunnerV1:
    def run(self):
        open(notes + ".running", "w").close()
        time.sleep(600)

worker, runner = WorkerDict.remote(), TaskRunnerV1.remote()
task = runner.run.remote()
for name, who in (("worker", ray.get(worker.pid.remote())), ("trainer", (os.getpid(), "-"))):
    with open(notes, "a") as file:
        file.write(f"{name} {who[0]} {who[1]}\\n")
with open(notes + ".session", "w") as file:
    file.write(context.address_info["session_dir"])
while not os.path.exists(notes + ".running"):
    time.sleep(0.05)
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    file.write(json.dumps({"step": 1, "data": {"training/global_step": 1}}) + "\\n")
if mode == "crash":
    time.sleep(1.5)
    os.abort()
time.sleep(600)
"""


class RayRun(StandIn):
    """The same launcher with a trainer that brings up a real Ray cluster, or joins one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stand_in.write_text(RAY_TRAINER)

    def start(self, mode: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start it and wait until Ray is up."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with open(self.output, "wb") as output:
            launcher = subprocess.Popen(
                self.argv(mode), stdout=output, stderr=subprocess.STDOUT, env=environ | environment
            )
        wait_for((self.run_folder / "metrics.jsonl").exists, self.output, what=self.log)
        return launcher

    def log(self) -> str:
        """What the trainer wrote."""
        return (self.run_folder / "train.log").read_text() if (self.run_folder / "train.log").exists() else ""

    @property
    def session(self) -> str:
        """Folder of the Ray session."""
        return Path(f"{self.notes}.session").read_text()


def processes_of(session: str) -> dict[int, str]:
    """Processes on this machine whose command line names a Ray session: gcs_server, raylet, agents, workers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if session in line:
            found[int(path.parent.name)] = line
    return found


@pytest.fixture
def ray_run(tmp_path: Path) -> RayRun:
    pytest.importorskip("ray")
    return RayRun(tmp_path)


@pytest.mark.parametrize("end", ["launcher killed", "ctrl-c", "trainer crashes", "raylet killed", "actor killed"])
def test_nothing_of_the_runs_own_ray_cluster_is_left(ray_run: RayRun, end: str) -> None:
    launcher = ray_run.start("crash" if end == "trainer crashes" else "run")
    session = ray_run.session
    worker = ray_run.members()["worker"]
    if end in ("raylet killed", "actor killed"):
        raylet = next(pid for pid, line in processes_of(session).items() if "/raylet " in line)
        victim = raylet if end == "raylet killed" else worker[0]
        # The keeper looks once a second, later where the machine is busy; what it never saw it cannot miss.
        wait_for(lambda: victim in ray_run.watched(), ray_run.output)
        os.kill(victim, signal.SIGKILL)
    elif end == "launcher killed":
        launcher.kill()
    elif end == "ctrl-c":
        launcher.send_signal(signal.SIGINT)
    launcher.wait(90)
    wait_for(lambda: ray_run.marker()["state"] not in ("starting", "running"), ray_run.output)
    wait_for(lambda: not processes_of(session), ray_run.output, what=lambda: processes_of(session))
    assert not is_alive(*worker)
    assert not Path(session).exists()
    if ray_run.marker()["state"] == "failed":
        # Ray's own logs are kept, as they may be the only ones to say why.
        assert list((ray_run.run_folder / "ray-logs.1").glob("raylet*"))


def test_a_ray_cluster_that_was_there_before_is_left_alone(ray_run: RayRun, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environ["RAY_AUTH_MODE"] = "disabled"  # otherwise head and driver disagree where ~/.ray has a token
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
        + ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=100000000"],
        env=environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="rc")},
        stdout=open(tmp_path / "head.txt", "wb"),  # noqa: SIM115
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head.txt").read_text(), tmp_path / "head.txt")
        launcher = ray_run.start("join", RAY_ADDRESS=f"127.0.0.1:{port}", RAY_AUTH_MODE="disabled")
        session = ray_run.session
        before = {pid for pid, line in processes_of(session).items() if "/raylet " in line or "/gcs_server " in line}
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(90) == 143
        wait_for(lambda: not is_alive(*ray_run.members()["worker"]), ray_run.output)
        assert len(before) == 2
        assert before <= set(processes_of(session))
        assert Path(session).exists()
    finally:
        head.terminate()
        head.wait(60)
