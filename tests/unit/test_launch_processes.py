"""Finding the processes of a run and what it leaves, by the mark and by descent; nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import pytest

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.launch.keeper import (
    CLOSING_PATIENCE,
    VITAL_PATIENCE,
    Keeper,
    describe_exit,
    is_vital,
    vital_processes,
)
from verl_toolrl.launch.processes import (
    MARK,
    Process,
    descendants,
    end_processes,
    mark_of,
    marked_runs,
    members,
    process_table,
    read_process,
    send_signal,
)
from verl_toolrl.launch.residue import SharedMemory, remove_scratch, scratch_folder
from verl_toolrl.launch.runs import new_run
from verl_toolrl.launch.stop import find_runs

RUN_ID = f"test{os.getpid()}"
SLEEP = "import time; print(flush=True); time.sleep(600)"


def start(code: str = SLEEP, **environment: str) -> subprocess.Popen[str]:
    """Start a Python process and wait until its code runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[str]]:
    process = start(**{MARK: RUN_ID})
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[str]]:
    process = start(**{MARK: f"{RUN_ID}-other"})
    yield process
    process.kill()
    process.communicate()


def test_a_process_describes_itself() -> None:
    me = read_process(os.getpid())
    assert me is not None
    assert (me.pid, me.ppid, me.alive) == (os.getpid(), os.getppid(), True)
    assert "py" in me.title
    assert me.resident_bytes > 1_000_000
    assert read_process(2**22 + 1) is None


def test_a_program_name_with_blanks_and_parentheses_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        found = read_process(process.pid)
        process.kill()
    assert found is not None
    assert (process.pid, os.getpid()) == (found.pid, found.ppid)


def test_only_marked_processes_are_members(marked: subprocess.Popen[str], stranger: subprocess.Popen[str]) -> None:
    assert [marked.pid] == [process.pid for process in members(RUN_ID)]
    assert {RUN_ID, f"{RUN_ID}-other"} <= set(marked_runs())
    assert RUN_ID == mark_of(marked.pid)[MARK]


def test_the_child_of_a_marked_process_is_a_member_without_the_mark() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}], env={{}})"
    with start(code, **{MARK: RUN_ID}) as parent:
        ids = [process.pid for process in members(RUN_ID)]
        assert len(ids) == 2
        assert end_processes(lambda: members(RUN_ID), patience=0.0)[1] == []
    assert parent.pid in ids


def test_the_caller_and_its_ancestors_are_never_members() -> None:
    code = (
        "import os; from verl_toolrl.launch.processes import MARK, members\n"
        "print([p.pid for p in members(os.environ[MARK])], flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"],
        env={**os.environ, MARK: RUN_ID},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_descent_follows_the_table() -> None:
    table = {pid: Process(pid, ppid, "S", 0) for pid, ppid in [(1, 0), (2, 1), (3, 2), (4, 1), (5, 4)]}
    assert {3} == descendants([2], table)
    assert {2, 3, 4, 5} == descendants([1], table)


def test_a_recycled_process_id_is_not_signalled(stranger: subprocess.Popen[str]) -> None:
    now = read_process(stranger.pid)
    assert now is not None
    earlier = Process(now.pid, now.ppid, now.state, now.start - 1)
    assert not send_signal(earlier, signal.SIGKILL)
    time.sleep(0.1)
    assert stranger.poll() is None


def test_politeness_comes_before_force() -> None:
    polite = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True); time.sleep(600)"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with start(polite, **{MARK: RUN_ID}) as one, start(deaf, **{MARK: RUN_ID}) as two:
        ended, survivors = end_processes(lambda: members(RUN_ID), patience=2.0)
    assert (7, -signal.SIGKILL) == (one.returncode, two.returncode)
    assert {one.pid, two.pid} == set(ended)
    assert survivors == []


def test_a_stopped_process_is_ended_too(marked: subprocess.Popen[str]) -> None:
    marked.send_signal(signal.SIGSTOP)
    while (now := read_process(marked.pid)) is not None and now.state != "T":
        time.sleep(0.01)
    assert end_processes(lambda: members(RUN_ID), patience=0.2)[1] == []
    assert marked.wait(10) == -signal.SIGKILL


def test_memory_of_the_run_is_removed_and_that_of_others_is_not(marked: subprocess.Popen[str]) -> None:
    ours, others, weights = (
        shared_memory.SharedMemory(create=True, size=64, name=name)
        for name in (f"{RUN_ID}-ours", f"{RUN_ID}-others", f"verl_weights_{RUN_ID}")
    )
    for segment in (ours, others, weights):
        resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]
    memory = SharedMemory(from_the_start=False)
    user = start(
        "from multiprocessing import shared_memory, resource_tracker; import time\n"
        f"m = shared_memory.SharedMemory(name='{ours.name}'); resource_tracker.unregister(m._name, 'shared_memory')\n"
        + SLEEP,
        **{MARK: RUN_ID},
    )
    try:
        assert memory.look(members(RUN_ID))
        assert {ours.name} == memory.used
        assert not memory.look(members(RUN_ID))
        user.kill()
        user.communicate()
        assert [] == memory.remove()  # we have it mapped ourselves
        for segment in (ours, others, weights):
            segment.close()
        assert [ours.name] == memory.remove()
        assert {others.name, weights.name} <= set(os.listdir("/dev/shm"))
    finally:
        for name in (ours.name, others.name, weights.name):
            Path("/dev/shm", name).unlink(missing_ok=True)


def test_verls_weight_buffers_of_this_run_are_removed() -> None:
    before = shared_memory.SharedMemory(create=True, size=64, name=f"verl_weights_{RUN_ID}before")
    memory = SharedMemory(from_the_start=True)
    during = shared_memory.SharedMemory(create=True, size=64, name=f"verl_weights_{RUN_ID}during")
    resource_tracker.unregister(during._name, "shared_memory")  # type: ignore[attr-defined]
    try:
        assert [] == memory.remove()  # still mapped
        during.close()
        assert [during.name] == memory.remove()
    finally:
        before.close()
        before.unlink()


def test_the_scratch_folder_is_short_and_its_logs_can_be_kept(tmp_path: Path) -> None:
    # A socket's path has at most 107 characters; Ray appends about 68 to its folder.
    assert len(str(scratch_folder("0123abcd"))) <= 39
    scratch = tmp_path / "scratch"
    logs = scratch / "ray" / "session_2026-01-01_00-00-00_1_2" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("out of memory")
    assert remove_scratch(scratch, keep_logs_in=tmp_path / "kept")
    assert "out of memory" == (tmp_path / "kept" / "raylet.err").read_text()
    assert not scratch.exists()
    assert not remove_scratch(scratch)


def test_stop_wants_to_know_which_of_several_runs(
    marked: subprocess.Popen[str], stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert [RUN_ID] == find_runs(RUN_ID, everything=False)
    with pytest.raises(ConfigError, match="several runs are going"):
        find_runs(None, everything=False)
    with pytest.raises(UnknownNameError, match="unknown run"):
        find_runs("0000", everything=False)
    with pytest.raises(ConfigError, match="not the folder of a run"):
        find_runs(str(tmp_path), everything=False)


@pytest.mark.parametrize(
    ("title", "vital"),
    [
        ("VLLM::EngineCore", True),
        ("VLLM::Worker", True),
        ("sglang::scheduler_TP0", True),
        ("ray::WorkerDict.actor_rollout_update_actor", True),
        ("ray::TaskRunnerV1.run", True),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/x", True),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=x", True),
        ("ray::IDLE", False),
        ("ray::compute_score", False),
        ("/usr/bin/python -m verl.trainer.main_ppo", False),
        ("cat raylet", False),
    ],
)
def test_what_a_run_cannot_go_on_without(title: str, vital: bool) -> None:
    assert vital == is_vital(title)


def test_a_fork_that_bears_the_title_of_its_parent_is_not_vital(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = {1: "python", 2: "ray::TaskRunnerV1.run", 3: "ray::TaskRunnerV1", 4: "VLLM::EngineCore", 5: "VLLM::Worker"}
    parents = {1: 0, 2: 1, 3: 2, 4: 1, 5: 4}
    monkeypatch.setattr(Process, "title", property(lambda self: titles[self.pid]))
    table = [Process(pid, parents[pid], "S", 0) for pid in titles]
    assert {2: titles[2], 4: titles[4], 5: titles[5]} == vital_processes(table)


def test_a_raylet_is_vital_beside_a_python_of_the_same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths are alike up to their first dot: /x/.venv/bin/python and /x/.venv/lib/.../raylet."""
    titles = {1: "/x/.venv/bin/python -m verl.trainer.main_ppo", 2: "/x/.venv/lib/ray/core/src/ray/raylet/raylet --a"}
    monkeypatch.setattr(Process, "title", property(lambda self: titles[self.pid]))
    assert {2: titles[2]} == vital_processes([Process(1, 0, "S", 0), Process(2, 1, "S", 0)])


RUNNER, ENGINE, WORKER, RAYLET = "ray::TaskRunnerV1.run", "VLLM::EngineCore", "ray::WorkerDict", "/x/raylet --a"


@pytest.mark.parametrize(
    ("looks", "died", "patience"),
    [
        pytest.param([{1: RUNNER, 2: ENGINE}, {1: RUNNER}], "VLLM::EngineCore", VITAL_PATIENCE, id="engine"),
        pytest.param([{1: RUNNER, 3: WORKER}, {1: RUNNER}], "ray::WorkerDict", VITAL_PATIENCE, id="worker"),
        pytest.param([{1: RUNNER, 3: WORKER, 4: RAYLET}, {}], "/x/raylet", VITAL_PATIENCE, id="raylet takes all along"),
        pytest.param([{4: RAYLET}, {}], "/x/raylet", VITAL_PATIENCE, id="raylet before training"),
        pytest.param(
            [{1: RUNNER, 3: WORKER, 4: RAYLET}, {4: RAYLET}], None, 0, id="task runner: Ray tells the trainer"
        ),
        pytest.param(
            [{1: RUNNER, 2: ENGINE, 3: WORKER}, {1: "ray::TaskRunnerV1", 2: ENGINE}, {}],
            "VLLM::EngineCore",
            CLOSING_PATIENCE,
            id="closing down after training",
        ),
        pytest.param(
            [{1: RUNNER, 5: "ray::SimpleStorageUnit.shutdown"}, {1: RUNNER}],
            "ray::SimpleStorageUnit.shutdown",
            CLOSING_PATIENCE,
            id="the queue, which the task runner closes before it returns",
        ),
        pytest.param(
            [{1: RUNNER, 2: ENGINE}, {1: RUNNER}, {1: "ray::TaskRunnerV1"}],
            "VLLM::EngineCore",
            CLOSING_PATIENCE,
            id="engine closed a moment before training returns",
        ),
        pytest.param([{1: RUNNER, 2: ENGINE}, {1: RUNNER, 2: ENGINE}], None, 0, id="nothing died"),
    ],
)
def test_a_death_that_verl_would_wait_for_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[dict[int, str]], died: str | None, patience: float
) -> None:
    clock = [100.0]
    monkeypatch.setattr("verl_toolrl.launch.keeper.time.monotonic", lambda: clock[0])
    keeper = Keeper(new_run(tmp_path, "r", []), ["true"], patience=1.0)
    for look in looks:
        keeper._watch_vital(look, set(look))
    assert (died or "") == (keeper._vital_died or ("", ""))[1].partition(" ")[0]
    clock[0] += patience - 0.1
    keeper._watch_vital(looks[-1], set(looks[-1]))
    assert keeper.reason == ""
    clock[0] += 0.2
    keeper._watch_vital(looks[-1], set(looks[-1]))
    assert keeper.reason == ("died" if died else "")


def test_an_engine_that_ends_after_the_last_step_was_closed(tmp_path: Path) -> None:
    run = new_run(tmp_path, "r", [])
    keeper = Keeper(run, ["true"], patience=1.0)
    run.file("train.log").write_text("Total training steps: 2\n")
    for step, patience in ((1, VITAL_PATIENCE), (2, CLOSING_PATIENCE)):
        run.file("metrics.jsonl").write_text(f'{{"step": {step}, "data": {{}}}}\n')
        assert keeper._patience_with_verl() == patience


@pytest.mark.parametrize(
    ("code", "expected"),
    [(1, "exit code 1"), (-9, "killed by SIGKILL"), (-11, "killed by SIGSEGV"), (-99, "killed by signal 99")],
)
def test_an_exit_code_is_told_in_words(code: int, expected: str) -> None:
    assert expected == describe_exit(code)


def test_the_process_table_holds_this_process() -> None:
    assert os.getpid() in process_table()
