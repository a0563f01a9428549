"""`verl-toolrl score`: score responses of a JSON lines file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Annotated, Any

import typer

from verl_toolrl.cli.options import parse_settings
from verl_toolrl.errors import AuthorError, ConfigError

__all__ = ["score"]


def score(
    file: Annotated[str, typer.Argument(help="JSON lines, or - for standard input.", metavar="FILE")],
    reward: Annotated[
        str, typer.Option(help="A registered reward (toolrl, tool_n1, mix, …), or my_file.py:name.")
    ] = "toolrl",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the reward, key=value; again for more. Values are YAML."),
    ] = None,
    total_steps: Annotated[
        int | None, typer.Option(help="Length of the run, for schedules over a share of it.")
    ] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="Write the reward's metrics, too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a row could not be scored.")] = False,
) -> None:
    """Score responses, one JSON object a line.

    Each line has `response` and `ground_truth`, and may have `id`, `step`, `total_steps` and `tools` (else tools are
    taken from `extra_info.tools`, or from a `prompt` in ToolRL's format). For each line one line is written: `{"id",
    "score", "components"}`, or `{"id", "error"}` where the ground truth is unusable.

    Example: verl-toolrl score --reward toolrl --set mode=released --set equal_max=true rows.jsonl
    """
    import json

    from verl_toolrl.rewards import make_reward
    from verl_toolrl.rewards.trajectory import need_response_reward

    configured = make_reward(reward, **parse_settings(settings or []))
    need_response_reward(configured, reward)
    failed = total = 0
    with _open(file) as lines:
        for number, line in _numbered(lines):
            total += 1
            answer = _score_line(line, number, configured, total_steps, metrics)
            failed += "error" in answer
            typer.echo(json.dumps(answer))
    if failed:
        typer.secho(f"{failed} of {total} rows could not be scored", fg="yellow", err=True)
        raise typer.Exit(int(strict))


def _open(file: str) -> IO[str]:
    if file == "-":
        import io

        return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
    try:
        return open(file, encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{file}: {err.strerror}") from err


def _numbered(lines: IO[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _score_line(line: str, number: int, reward: Any, total_steps: int | None, metrics: bool) -> dict[str, Any]:
    import json

    from verl_toolrl.formats.tool_list import row_tools

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as err:
        return {"id": None, "error": f"line {number}: not JSON ({err})"}
    if not isinstance(row, dict):
        return {"id": None, "error": f"line {number}: wanted an object, got {type(row).__name__}"}
    identifier = row.get("id")
    step = row.get("step", 0)
    try:
        for key in ("response", "ground_truth"):
            if key not in row:
                raise ConfigError(f"line {number}: {key!r} is missing (keys: {', '.join(row) or 'none'})")
        if isinstance(step, bool) or not isinstance(step, int):
            raise ConfigError(f"line {number}: step must be a whole number, got {step!r}")
        result = reward(
            response=row["response"],
            ground_truth=row["ground_truth"],
            tools=row["tools"] if row.get("tools") is not None else row_tools(row, f"line {number}") or None,
            step=step,
            total_steps=row.get("total_steps", total_steps),
        )
    except AuthorError as err:
        return {"id": identifier, "error": str(err)}
    answer = {"id": identifier, "score": result.score, "components": result.components}
    return {**answer, "metrics": result.metrics} if metrics else answer
