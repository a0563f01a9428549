"""verl's tools in our toolbox, ours in verl's own agent loop; with the real verl."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.toolbox import StatefulTool, Toolbox, tool
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_agent_loop import AgentData, ToolAgentLoop  # noqa: E402
from verl.experimental.agent_loop.tool_parser import FunctionCall  # noqa: E402
from verl.tools.tool_registry import load_all_tools  # noqa: E402

from verl_toolrl.integrations.verl_tools import as_verl_config, as_verl_tools  # noqa: E402

_BASE_TOOL = """
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import ToolResponse

LOG = []

class CounterTool(BaseTool):
    async def create(self, instance_id=None, **kwargs):
        self._values = getattr(self, "_values", {})
        name = f"i{len(LOG)}"
        self._values[name] = kwargs.get("create_kwargs", {}).get("start", 0)
        LOG.append(("create", name))
        return name, ToolResponse()

    async def execute(self, instance_id, parameters, **kwargs):
        self._values[instance_id] += parameters["by"]
        LOG.append(("execute", instance_id, "agent_data" in kwargs))
        return ToolResponse(text=f"now {self._values[instance_id]}"), 0.5, {"n": 1}

    async def release(self, instance_id, **kwargs):
        LOG.append(("release", instance_id))
        del self._values[instance_id]
"""
_CONFIG = """
tools:
  - class_name: verl_counter_tool.CounterTool
    config: {type: native}
    tool_schema:
      type: function
      function:
        name: counter
        description: Count.
        parameters: {type: object, properties: {by: {type: integer, description: Step.}}, required: [by]}
"""
_FUNCTIONS = '''
from verl.tools.function_tool import function_tool

@function_tool
def verl_area(width: float, height: float) -> str:
    """Compute an area.

    Args:
        width: Width.
        height: Height.
    """
    return str(width * height)

@function_tool
async def verl_scored(x: int) -> tuple:
    """Answer with a reward.

    Args:
        x: Number.
    """
    return {"x": x}, 0.25, {"m": 1}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    (folder / "verl_counter_tool.py").write_text(_BASE_TOOL)
    (folder / "tools.yaml").write_text(_CONFIG)
    (folder / "functions.py").write_text(_FUNCTIONS)
    (folder / "set.yaml").write_text(
        "tools:\n  - use: verl_toolrl.integrations.verl_tools:verl_tools\n    config:\n"
        f"      tool_config_path: {folder}/tools.yaml\n      function_tool_path: {folder}/functions.py\n"
    )
    sys.path.insert(0, str(folder))
    return folder


def test_base_tools_and_function_tools_work_unchanged_for_a_whole_trajectory(folder: Path):
    box = Toolbox.load(folder / "set.yaml")
    assert list(box.tools) == ["counter", "verl_area", "verl_scored"]

    async def run() -> list[ToolResult]:
        async with box, box.session(state={"counter": {"start": 10}}, extra={"agent_data": object()}) as session:
            calls = [
                ToolCall("counter", {"by": 1}),
                ToolCall("counter", {"by": "2"}),
                ToolCall("counter", {"by": "x"}),
                ToolCall("verl_area", {"width": 2, "height": 3.5}),
                ToolCall("verl_scored", {"x": 1}),
            ]
            return await session.call_all(calls)

    results = asyncio.run(run())
    log = sys.modules["verl_counter_tool"].LOG
    assert [each.content for each in results[:2]] == ["now 11", "now 13"]
    assert results[0].value == {"text": "now 11", "reward": 0.5, "metrics": {"n": 1}}
    assert results[2].outcome is Outcome.MODEL_ERROR
    assert results[3].content == "7.0"
    assert (results[4].content, results[4].value["reward"]) == ('{"x": 1}', 0.25)
    # One instance for the trajectory, released at its end.
    assert log == [("create", "i0"), ("execute", "i0", True), ("execute", "i0", True), ("release", "i0")]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "give tool_config_path"),
        ({"tool_config_path": "none.yaml"}, "no such file"),
        ({"function_tool_path": "FOLDER/broken.py"}, "verl cannot load"),
    ],
)
def test_a_wrong_path_raises(folder: Path, config: dict[str, str], words: str):
    from verl_toolrl.integrations.verl_tools import verl_tools

    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=words):
        verl_tools(**{key: value.replace("FOLDER", str(folder)) for key, value in config.items()})


class Box(StatefulTool):
    closed = 0

    def __init__(self, items: list[str] | None = None) -> None:
        self.items = list(items or [])

    @tool(isolation="inline")
    def put(self, item: dict[str, list[int]] | str, note: str | None = None) -> int:
        """Put."""
        self.items.append(str(item))
        return len(self.items)

    def close(self) -> None:
        Box.closed += 1


@tool(limits={"timeout": 0.05})
async def hang() -> str:
    """Hang."""
    await asyncio.sleep(3600)
    return ""


def _agent_loop(tools: list[Any]) -> Any:
    """verl's own `_call_tool`, bound to what it reads."""
    loop = SimpleNamespace(
        tools={each.name: each for each in tools}, max_tool_response_length=256, tool_response_truncate_side="left"
    )
    return lambda call, data: ToolAgentLoop._call_tool(loop, call, {}, data)


def _agent_data(**tools_kwargs: Any) -> Any:
    return AgentData(
        messages=[], image_data=None, video_data=None, audio_data=None, mm_processor_kwargs=None, metrics={},
        request_id="r", tools_kwargs=tools_kwargs,
    )  # fmt: skip


def test_our_tools_run_in_verls_own_loop_with_state_over_the_whole_trajectory():
    Box.closed = 0
    box = Toolbox([Box, hang])
    call = _agent_loop(as_verl_tools(box))

    async def run() -> None:
        first, second = _agent_data(Box={"create_kwargs": {"items": ["a"]}}), _agent_data()
        put = FunctionCall(name="put", arguments=json.dumps({"item": "x"}))
        texts = [(await call(put, data))[0].text for data in (first, first, second)]
        assert texts == ["2", "3", "1"]
        together = await asyncio.gather(*(call(put, first) for _ in range(3)))
        assert [each[0].text for each in together] == ["4", "5", "6"]
        wrong = await call(FunctionCall(name="put", arguments='{"itm": 1}'), first)
        assert "did you mean 'item'" in wrong[0].text and wrong[2]["outcome"] == "model_error"
        hung = await call(FunctionCall(name="hang", arguments="{}"), first)
        assert hung[2]["outcome"] == "timeout"
        del first, second
        gc.collect()
        while box.sessions:
            await asyncio.sleep(0.005)
        assert Box.closed == 2
        await box.aclose()

    asyncio.run(run())


def test_verl_reads_the_whole_schema():
    put = as_verl_tools(Toolbox([Box]))[0]
    dumped = put.tool_schema.model_dump(exclude_unset=True, exclude_none=True)
    assert dumped == Toolbox([Box]).schemas()[0]
    assert dumped["function"]["parameters"]["properties"]["note"]["anyOf"]


def test_verl_loads_ours_from_its_own_configuration_file(tmp_path: Path):
    import yaml

    path = tmp_path / "tools.yaml"
    path.write_text(yaml.safe_dump(as_verl_config("quickstart")))
    tools = load_all_tools(str(path), None)
    assert [each.name for each in tools] == list(Toolbox.load("quickstart").tools)
    text = asyncio.run(
        _agent_loop(tools)(FunctionCall(name="calculate", arguments='{"expression": "6*7"}'), _agent_data())
    )
    assert text[0].text == "42"


def test_a_wrong_entry_in_verls_file_raises():
    from verl_toolrl.integrations.verl_tools import VerlTool

    with pytest.raises(UnknownNameError, match="did you mean 'calculate'"):
        VerlTool({"type": "native", "toolset": "quickstart", "name": "calcluate"}, None)
    with pytest.raises(ConfigError, match="toolset and name"):
        VerlTool({"type": "native"}, None)
