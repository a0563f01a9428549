"""`verl-toolrl tools`: look at a tool set, call a tool by hand, offer the set over MCP."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_toolrl.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from verl_toolrl.toolbox import Toolbox

__all__ = ["app"]

app = typer.Typer(help="Look at tools, call one by hand, offer a set over MCP.", no_args_is_help=True)

_SET_HELP = (
    "Tool set: a YAML file, a ready-made name (quickstart, calculator, ...), or a module path (my_package.tools). "
    "Without it: the deterministic ready-made tools."
)
ToolSet = Annotated[str, typer.Option("--toolset", "-t", help=_SET_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command("list")
def list_tools(toolset: ToolSet = "quickstart", as_json: Json = False) -> None:
    """List the tools of a set: what they are about, how they are isolated, their limits."""
    box, opened = _loaded(toolset)
    tools = asyncio.run(_tools(box)) if opened else dict(box.tools)
    if as_json:
        typer.echo(json.dumps([_row(each) for each in tools.values()], indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{toolset}: {len(tools)} tools", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    console = Console()
    rows = [_row(each) for each in tools.values()]
    for row in rows:
        row["tool"] = f"{row['name']} (ends)" if row["ends_trajectory"] else row["name"]
        row["time"] = _seconds(row["timeout"])
    columns = {"tool": "tool", "domain": "domain", "runs": "isolation", "time": "time"}
    widths = [max(len(title), *(len(row[key] or "") for row in rows)) for title, key in columns.items()]
    for title, width in zip(columns, widths):
        table.add_column(title, no_wrap=True, width=width)
    rest = console.width - sum(width + 3 for width in widths) - 4
    table.add_column("what it does", no_wrap=True, overflow="ellipsis", width=max(rest, 24))
    for row in rows:
        table.add_row(*(row[key] or "" for key in columns.values()), row["summary"])
    console.print(table)
    ready = _ready_made()
    typer.echo(f"ready-made: {', '.join(ready)}\nSee one with: verl-toolrl tools show NAME -t {toolset}")


def _seconds(timeout: float | None) -> str:
    return "none" if timeout is None else f"{timeout:g} s"


def _row(tool: Any) -> dict[str, Any]:
    summary = tool.schema.description.split("\n")[0]
    return {
        "name": tool.name,
        "domain": tool.domain,
        "isolation": tool.isolation.value,
        "timeout": tool.limits.timeout,
        "deterministic": tool.deterministic,
        "ends_trajectory": tool.ends_trajectory,
        "state": tool.state.name if tool.state else None,
        "source": tool.source,
        "summary": summary if len(summary) <= 90 else f"{summary[:89]}…",
    }


@app.command("show")
def show(
    name: Annotated[str | None, typer.Argument(help="Name of a tool; without it all schemas of the set.")] = None,
    toolset: ToolSet = "quickstart",
    as_json: Json = False,
) -> None:
    """Show the schema as the model reads it, and the limits.

    With --json the bare schema, as it goes into the chat template.
    """
    box, opened = _loaded(toolset)
    tools = asyncio.run(_tools(box)) if opened else dict(box.tools)
    if name is not None and name not in tools:
        raise UnknownNameError(f"tool of {toolset}", name, tools)
    chosen = list(tools.values()) if name is None else [tools[name]]
    if as_json:
        schemas = [each.schema.to_dict() for each in chosen]
        typer.echo(json.dumps(schemas if name is None else schemas[0], indent=2, ensure_ascii=False))
        return
    from dataclasses import asdict

    from rich.console import Console
    from rich.syntax import Syntax

    console = Console()
    for each in chosen:
        text = json.dumps(each.schema.to_dict(), indent=2, ensure_ascii=False)
        console.print(Syntax(text, "json", background_color="default", word_wrap=True))
        hidden = () if each.limits.retries or each.limits.breaker else ("backoff", "cooldown")
        limits = ", ".join(
            f"{key} {value:g}" for key, value in asdict(each.limits).items() if value and key not in hidden
        )
        state = f"state {each.state.name}; " if each.state else ""
        console.print(f"[dim]{each.source}; runs {each.isolation.value}; {state}{limits}[/dim]\n", highlight=False)


@app.command("call")
def call(
    name: Annotated[str, typer.Argument(help="Name of the tool.")],
    arguments: Annotated[
        str, typer.Argument(help='Arguments as a JSON object, such as \'{"expression": "1 + 1"}\'.')
    ] = "{}",
    toolset: ToolSet = "quickstart",
    state: Annotated[
        str, typer.Option("--state", help='Initial state by name, such as \'{"Inventory": {"stock": {}}}\'.')
    ] = "{}",
    as_json: Json = False,
) -> None:
    """Call a tool as a trajectory would: validated, limited, sorted.

    Exit code 0 for an answer, 2 for a mistake in the arguments, 3 for the tool's own error, 4 for a time-out,
    5 for an infrastructure failure, 6 for a refusal.
    """
    from verl_toolrl.trajectory import Outcome, ToolCall

    given, initial = _json_object(arguments, "arguments"), _json_object(state, "--state")
    box, _ = _loaded(toolset)

    async def run() -> Any:
        async with box, box.session("by-hand", state=initial) as session:
            return await session.call(ToolCall(name, given))

    result = asyncio.run(run())
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(result), indent=2, ensure_ascii=False, default=str))
    else:
        typer.echo(result.content)
        color = "green" if result.outcome is Outcome.OK else "red"
        note = f" ({result.error})" if result.error and result.error not in result.content else ""
        typer.secho(f"[{result.outcome.value}, {result.seconds * 1000:.1f} ms]{note}", fg=color, err=True)
    codes = {
        Outcome.OK: 0,
        Outcome.MODEL_ERROR: 2,
        Outcome.TOOL_ERROR: 3,
        Outcome.TIMEOUT: 4,
        Outcome.INFRA_ERROR: 5,
        Outcome.REFUSED: 6,
    }
    raise typer.Exit(codes[result.outcome])


@app.command("serve")
def serve(
    toolset: ToolSet = "quickstart",
    http: Annotated[
        str | None, typer.Option("--http", help="HOST:PORT for streamable HTTP at /mcp; without it stdio.")
    ] = None,
) -> None:
    """Offer a tool set over MCP, on standard input and output or over streamable HTTP.

    Over stdio one connection is one trajectory; over HTTP the header x-trajectory-id names it.
    """
    from verl_toolrl.toolbox.serve import serve_http, serve_stdio

    box, _ = _loaded(toolset)
    try:
        if http is None:
            asyncio.run(serve_stdio(box))
        else:
            host, _, port = http.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(f"--http: wanted HOST:PORT such as 127.0.0.1:8000, found {http!r}")
            typer.echo(f"serving {toolset} at http://{http}/mcp", err=True)
            asyncio.run(serve_http(box, host, int(port)))
    except KeyboardInterrupt:
        sys.exit(0)


def _loaded(toolset: str) -> tuple[Toolbox, bool]:
    """Return the toolbox, and whether its tools are known only once it is open."""
    from verl_toolrl.toolbox import Toolbox

    box = Toolbox.load(toolset)
    return box, box.has_sources


async def _tools(box: Toolbox) -> dict[str, Any]:
    async with box:
        return dict(box.tools)


def _ready_made() -> list[str]:
    from verl_toolrl.toolbox.toolset import ready_made

    return list(ready_made())


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as err:
        raise ConfigError(f"{what}: not JSON: {err}; wanted an object such as '{{\"key\": 1}}'") from err
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: wanted a JSON object, found {type(value).__name__}")
    return value
