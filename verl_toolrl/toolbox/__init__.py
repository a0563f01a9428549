"""The toolbox: tools that people register, run under limits, with every failure told apart.

What is here, in the order in which one meets it:

    tool.py       what a tool is: `@tool`, `StatefulTool`        limits.py     limits of a tool, budgets of a trajectory
    schema.py     schemas that keep everything                   arguments.py  checked, coerced or refused in words
    box.py        `Toolbox`: tools in operation                  session.py    the tools of one trajectory
    flight.py     one call, from launch to result                outcomes.py   whose doing a failure was
    threads.py, workers.py, watchdog.py                          isolation and its guard
    toolset.py    tool sets in YAML, modules                     recording.py  answers written down and replayed
    mcp.py        tools of MCP servers                           serve.py      ours, offered over MCP
    openapi.py    tools that are HTTP endpoints                  sandbox.py    a place to run code that nobody trusts

None of it knows verl; `verl_toolrl.integrations.verl_tools` translates both ways.
"""

from verl_toolrl.toolbox.box import Toolbox, ToolSource
from verl_toolrl.toolbox.limits import Budget, Limits
from verl_toolrl.toolbox.outcomes import CallRefused, ModelMistake, ToolError
from verl_toolrl.toolbox.recording import Recording, RecordingMode
from verl_toolrl.toolbox.schema import ToolSchema
from verl_toolrl.toolbox.session import Session
from verl_toolrl.toolbox.tool import Isolation, StatefulTool, StateSpec, Tool, ToolContext, tool

__all__ = [
    "Budget",
    "CallRefused",
    "Isolation",
    "Limits",
    "ModelMistake",
    "Recording",
    "RecordingMode",
    "Session",
    "StateSpec",
    "StatefulTool",
    "Tool",
    "ToolContext",
    "ToolError",
    "ToolSchema",
    "ToolSource",
    "Toolbox",
    "tool",
]
