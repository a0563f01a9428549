"""What `import verl` does with our plugin, seen in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("verl", reason="needs verl")


def python(code: str, platform: str | None = "cpu", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    env.update({"VERL_PLATFORM": platform} if platform else {}, **environment)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def modules_after(code: str, platform: str | None = "cpu") -> set[str]:
    done = python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))", platform)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_verl_loads_no_registration_before_its_registry() -> None:
    modules = modules_after("import verl")
    assert "verl_toolrl.plugin" in modules
    waiting = ("reward_manager", "agent_loop", "trainer", "cpu.engines")
    assert not {f"verl_toolrl.integrations.{name}" for name in waiting} & modules
    assert not {"vllm", "verl.trainer.ppo.v1", "verl.experimental.agent_loop"} & modules


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls as get\n"
            "print(get('toolrl'))",
            "verl_toolrl.integrations.reward_manager.ToolRLRewardManager",
        ),
        (
            "from verl.trainer.ppo.v1 import get_trainer_cls as get\n"
            "modes = ('sync', 'colocate_async', 'separate_async')\n"
            "print(*[get(f'toolrl_{mode}').__bases__[-1].__name__ for mode in modes])",
            "PPOTrainerSync PPOTrainerColocateAsync PPOTrainerSeparateAsync",
        ),
        (
            "from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as r\n"
            "print(r['toolrl_single_turn'])",
            "verl_toolrl.integrations.agent_loop.SeededSingleTurnAgentLoop",
        ),
        ("from verl.plugin.platform import get_platform\nprint(get_platform().device_name)", "cpu"),
        (
            "from verl.workers.engine import EngineRegistry as r\n"
            "print(r.get_engine_cls('value_model', 'fsdp2').__name__)",
            "CPUEngineWithValueHead",
        ),
    ],
    ids=["reward manager", "trainers", "agent loop", "platform", "engine"],
)
def test_each_registry_holds_our_names_once_it_is_imported(code: str, expected: str) -> None:
    done = python(f"import verl\n{code}")
    assert expected in done.stdout, done.stderr


def test_our_package_may_be_imported_before_verl() -> None:
    """Ray unpickles a class of ours first, and verl then loads the plugin while our package is half imported."""
    done = python(
        "import verl_toolrl.plugin\nfrom verl.trainer.ppo.v1 import get_trainer_cls\nget_trainer_cls('toolrl_sync')"
    )
    assert done.returncode == 0, done.stderr


def test_nothing_for_the_cpu_is_imported_where_it_is_not_chosen() -> None:
    # vLLM loads its plugins in every process of its own.
    vllm = "for entry in __import__('importlib.metadata').metadata.entry_points(group='vllm.general_plugins'):\n"
    vllm += "    if entry.dist.name == 'verl-toolrl':\n        entry.load()()\n"
    modules = modules_after(f"import verl\nimport verl.workers.engine\n{vllm}", platform=None)
    assert "verl_toolrl.integrations.vllm_plugin" in modules
    assert not {name for name in modules if name.startswith("verl_toolrl.integrations.cpu")}


def test_the_reward_manager_does_without_transfer_queue() -> None:
    """verl's trainers from before V1 ask for no TransferQueue, and use reward managers all the same."""
    code = "import sys\nsys.modules['transfer_queue'] = None\nimport verl\n"
    code += "from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls as get\n"
    done = python(f"{code}print('found', get('toolrl').__name__)")
    assert "found ToolRLRewardManager" in done.stdout, done.stderr


def test_a_verl_outside_the_range_is_refused_aloud() -> None:
    code = "import verl_toolrl.integrations.versions as v\nv.VERL_MAX = '0.9.1'\nimport verl"
    done = python(code)
    assert "needs verl>=0.9.1" in done.stderr and "could not register" in done.stderr


def test_a_recipe_for_the_cpu_fails_with_one_line_where_it_is_not_chosen() -> None:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "toolrl/quickstart"]
    env = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert 1 == done.returncode and "Traceback" not in done.stderr
    assert "set VERL_PLATFORM=cpu before the command" in done.stderr.splitlines()[-1]


def test_request_seeds_depend_on_all_four_parts_and_nothing_else() -> None:
    done = python(
        "import verl\nfrom verl_toolrl.integrations.agent_loop import request_seed as f\n"
        "base = dict(seed=1, step=2, row=['3', []], session=0)\n"
        "changed = [dict(seed=2), dict(step=3), dict(row=['4', []]), dict(session=1)]\n"
        "seeds = [f(**base)] + [f(**{**base, **change}) for change in changed]\n"
        "assert len(set(seeds)) == 5 and seeds[0] == f(**base) and all(0 <= seed < 2**31 for seed in seeds)\n"
        "print('seeds', seeds[0])"
    )
    # blake2b of '[1, 2, ["3", []], 0]', 4 bytes, without the sign bit: pinned, since a change changes every run.
    assert "seeds 1929050729" in done.stdout, done.stdout + done.stderr
