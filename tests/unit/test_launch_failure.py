"""The reason of a failure, out of the log of a trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_toolrl.launch.failure import clean_line, last_error

# As the driver prints it (ray 2.60): Ray's wrapper, the worker's frames, the exception itself.
RAY = """
(RewardLoopWorker pid=7) Traceback (most recent call last):
(RewardLoopWorker pid=7)   File "loop.py", line 1, in run
(RewardLoopWorker pid=7) KeyError: 'a row that verl survived'
Error executing job with overrides: ['a=1']
Traceback (most recent call last):
  File "main_ppo.py", line 184, in main
    run_ppo(config)
ray.exceptions.RayTaskError(ValueError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=6, ip=10.0.0.1)
  File "main_ppo.py", line 150, in run
    self.trainer.init()
    ^^^^^^^^^^^^^^^^^^^
  File "trainer.py", line 3, in init
ValueError: train_batch_size (4) must be divisible by 3

Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.
(raylet) noise of the shutdown
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        pytest.param(RAY, ["ValueError: train_batch_size (4) must be divisible by 3"], id="below Ray's wrapper"),
        pytest.param(
            'Traceback (most recent call last):\n  File "a.py", line 1\nomegaconf.errors.Unsupported: no x\n'
            "    key: a\n\n",
            ["omegaconf.errors.Unsupported: no x", "    key: a"],
            id="message of two lines",
        ),
        pytest.param(
            'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1\n\nDuring handling of the above '
            'exception, another exception occurred:\n\nTraceback (most recent call last):\n  File "b.py", line 1\n'
            "RuntimeError: two\n",
            ["RuntimeError: two"],
            id="the last of a chain",
        ),
        pytest.param(
            '(WorkerDict pid=3) Traceback (most recent call last):\n(WorkerDict pid=3)   File "a.py", line 1\n'
            "(WorkerDict pid=3) AssertionError\nbye\n",
            ["AssertionError"],
            id="a worker's, where the trainer wrote none",
        ),
        pytest.param(
            "(raylet) 1 Workers (tasks / actors) killed due to memory pressure (OOM)\n" + RAY,
            [
                "the machine ran out of memory and Ray ended a worker",
                "ValueError: train_batch_size (4) must be divisible by 3",
            ],
            id="memory outweighs the exception that followed",
        ),
        pytest.param("one\ntwo\n", [], id="no exception"),
        pytest.param("", [], id="empty"),
    ],
)
def test_the_reason_is_found(tmp_path: Path, log: str, expected: list[str]) -> None:
    path = tmp_path / "train.log"
    path.write_text(log)
    assert expected == last_error(path)


def test_a_missing_log_gives_no_reason(tmp_path: Path) -> None:
    assert [] == last_error(tmp_path / "train.log")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("\x1b[36m(TaskRunnerV1 pid=11498)\x1b[0m step:1", "step:1"),
        ("(WorkerDict pid=1, ip=10.0.0.2) x", "x"),
        ("(EngineCore pid=5) WARNING", "WARNING"),
        ("(not a prefix) x", "(not a prefix) x"),
    ],
)
def test_rays_prefix_and_colours_are_stripped(line: str, expected: str) -> None:
    assert expected == clean_line(line)
