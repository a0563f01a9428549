"""Run Python programs that the model writes, walled in (see `verl_toolrl.toolbox.sandbox`).

One folder a trajectory: files stay from call to call and go with the trajectory, variables do not. A program that
fails, takes too long, prints or writes too much is the model's mistake. The toolbox does not open where the kernel
gives no means to wall a program in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.toolbox import ModelMistake, StatefulTool, tool
from verl_toolrl.toolbox.sandbox import RunResult, Sandbox, SandboxUnavailable

_STOPPED = {
    "time": "stopped after {seconds:g} s",
    "output": "stopped because it printed too much",
    "disk": "stopped because it wrote too much",
}


class PythonSandbox(StatefulTool):
    """The folder of one trajectory and the tool that runs programs in it.

    Args:
        seconds: Time limit of a program.
        memory_mb: Memory limit of a program.
        disk_mb: Size of the folder.
        means: `namespaces` or `landlock`; None takes the first that works.
        read_only: Further folders that programs may read, such as a site-packages.
    """

    def __init__(
        self,
        seconds: float = 10.0,
        memory_mb: int = 512,
        disk_mb: int = 64,
        means: str | None = None,
        read_only: Sequence[str] = (),
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="toolbox-python-")
        self._sandbox = Sandbox(
            self._folder,
            means=means or _found.get("means"),
            seconds=seconds,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            read_only=read_only,
        )

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @classmethod
    async def startup(
        cls,
        seconds: float = 10.0,
        memory_mb: int = 512,
        disk_mb: int = 64,
        means: str | None = None,
        read_only: Sequence[str] = (),
    ) -> None:
        """Refuse to start where no means works; a trial program has to fail at leaving the sandbox."""
        with tempfile.TemporaryDirectory(prefix="toolbox-python-") as folder:
            try:
                _found["means"] = await Sandbox(folder, means=means).check()
            except SandboxUnavailable as err:
                raise ConfigError(f"python_sandbox: {err}") from err

    @tool(
        domain="code", arguments_cause_timeout=True, limits={"timeout": 90.0, "output_tokens": 2048, "concurrency": 16}
    )
    async def run_python(self, code: str) -> str:
        """Run a Python program and return what it prints. No network, no other processes; files last for the task.

        Args:
            code: The whole program; print what you want to see.
        """
        try:
            result = await self._sandbox.run(code)
        except SandboxUnavailable as err:
            raise InfrastructureError(f"sandbox: {err}") from err
        if result.exit_code == 0:
            return result.output or "(no output)"
        raise ModelMistake(f"The program {_ending(result, self._sandbox.seconds)}.\n{result.output[-8000:]}".rstrip())


# What `startup` found to work here; the same for all trajectories of a process.
_found: dict[str, str] = {}


def _ending(result: RunResult, seconds: float) -> str:
    if result.stopped is not None:
        return "was " + _STOPPED[result.stopped].format(seconds=seconds)
    if result.exit_code is not None and result.exit_code < 0:
        return f"died of signal {-result.exit_code}"
    return f"ended with exit code {result.exit_code}"
