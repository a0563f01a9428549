"""`verl-toolrl annotate`: step rewards for recorded trajectories, by rules or by a judge, and the offline format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_toolrl.errors import ConfigError, DatasetError, InfrastructureError

if TYPE_CHECKING:
    from verl_toolrl.rewards.judge import Judge, Judgement
    from verl_toolrl.rewards.steptool import StepRewards
    from verl_toolrl.trajectory import Trajectory

__all__ = ["annotate"]

NOT_ALL_JUDGED = 3
"""Exit code when the judge could not label every trajectory; run again to go on."""


class Source(str, Enum):
    """Where step rewards come from."""

    RULES = "rules"
    JUDGE = "judge"


class ModeName(str, Enum):
    """Modes of the rules."""

    ROBUST = "robust"
    PAPER = "paper"
    RELEASED = "released"


def annotate(
    trajectories: Annotated[Path, typer.Argument(help="JSON lines, one trajectory each (Trajectory.to_dict).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Annotated copy. Default: <name>.annotated.jsonl beside it.")
    ] = None,
    source: Annotated[Source, typer.Option("--by", help="Rules, or a judge's labels for every step.")] = Source.RULES,
    mode: Annotated[
        ModeName, typer.Option(help="Formulas of the rules: robust (cannot be farmed), paper, released.")
    ] = ModeName.ROBUST,
    verifier: Annotated[
        str,
        typer.Option(
            help="IsSolved of the rules: exact, numeric (both read extra.ground_truth), state (extra.final_state "
            "against extra.ground_truth_state), judge (rules for the steps, a judge for the outcome)."
        ),
    ] = "exact",
    alpha: Annotated[float, typer.Option(help="Weight of SuccCalling; Contribution has 1 (paper, robust).")] = 1.0,
    bound: Annotated[float, typer.Option(help="Most that intermediate rewards sum to (robust).")] = 0.5,
    tools: Annotated[
        Path | None,
        typer.Option(help="JSON file with the tools' schemas (OpenAI form); calls that break them did not succeed."),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel="Offline training file",
            help="Write StepTool's offline training file too (TSV: prompt, response, reward).",
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            rich_help_panel="Offline training file",
            help="Text form of the offline file: chatml, qwen2, llama3.1, toolllama.",
        ),
    ] = "chatml",
    actions: Annotated[
        str,
        typer.Option(
            rich_help_panel="Offline training file",
            help="Responses in the offline file: text (as sampled) or react (Action / Action Input).",
        ),
    ] = "text",
    judge_url: Annotated[
        str | None,
        typer.Option(rich_help_panel="Judge", help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(rich_help_panel="Judge", help="Model name at that endpoint.")
    ] = None,
    judge_key_env: Annotated[
        str, typer.Option(rich_help_panel="Judge", help="Environment variable with the API key; unset sends none.")
    ] = "OPENAI_API_KEY",
    judgements: Annotated[int, typer.Option(rich_help_panel="Judge", min=1, help="Judgements a trajectory.")] = 3,
    concurrency: Annotated[int, typer.Option(rich_help_panel="Judge", min=1, help="Requests in the air at once.")] = 8,
    timeout: Annotated[
        float, typer.Option(rich_help_panel="Judge", min=0.1, help="Seconds a request may take.")
    ] = 60.0,
    attempts: Annotated[int, typer.Option(rich_help_panel="Judge", min=1, help="Tries a judgement.")] = 4,
    max_requests: Annotated[
        int | None, typer.Option(rich_help_panel="Judge", min=0, help="Most requests of this run.")
    ] = None,
    max_judge_tokens: Annotated[
        int | None, typer.Option(rich_help_panel="Judge", min=0, help="Most tokens of this run.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel="Judge",
            help="Judgements so far; a run goes on from it. Default: <output>.judgements.jsonl.",
        ),
    ] = None,
) -> None:
    """Give every step of recorded trajectories a reward, by rules or by a judge.

    The annotated copy holds them in extra.step_rewards and is a trajectory file again.

    Trajectories that a failure of infrastructure decided are marked invalid and left out of the offline file.

    Exit codes: 0 all annotated; 1 an input is wrong; 3 some were not judged (run the same command to go on).

    Examples:

      verl-toolrl annotate rollouts.jsonl

      verl-toolrl annotate rollouts.jsonl --mode paper --verifier numeric --offline train.tsv --template qwen2

      verl-toolrl annotate rollouts.jsonl --by judge --judge-url http://localhost:8000/v1 --judge-model qwen3-32b
    """
    import os
    from dataclasses import replace

    from verl_toolrl.rewards.steptool import StepToolReward
    from verl_toolrl.rewards.steptool_offline import TEMPLATES
    from verl_toolrl.rewards.succ_calling import SuccCalling

    if template not in TEMPLATES or actions not in ("text", "react"):
        raise ConfigError(
            f"--template {template} --actions {actions}: wanted one of {', '.join(TEMPLATES)}, and text or react"
        )
    output = output or trajectories.with_suffix(".annotated.jsonl")
    if output.resolve() == trajectories.resolve():
        raise ConfigError(f"--output {output} is the input file")
    reward = StepToolReward(
        mode=mode.value, verifier=verifier, alpha=alpha, bound=bound, success=SuccCalling(check=_schema_check(tools))
    )
    read = list(_read(trajectories))
    labels: dict[int, list[Judgement]] = {}
    failures: list[InfrastructureError] = []
    judge = None
    asks_judge = source is Source.JUDGE or verifier == "judge"
    if asks_judge:
        from verl_toolrl.rewards.judge import Judge

        if judge_url is None or judge_model is None:
            raise ConfigError("a judge needs --judge-url and --judge-model")
        judge = Judge(
            base_url=judge_url,
            model=judge_model,
            api_key=os.environ.get(judge_key_env),
            judgements=judgements,
            concurrency=concurrency,
            timeout=timeout,
            attempts=attempts,
            max_requests=max_requests,
            max_tokens_total=max_judge_tokens,
            cache=cache or output.with_suffix(".judgements.jsonl"),
        )
        labels, failures = _ask(judge, read)
    done: list[tuple[Trajectory, StepRewards]] = []
    for number, trajectory in enumerate(read):
        if asks_judge and number not in labels and _scorable(trajectory):
            continue
        if number in labels:
            trajectory = replace(trajectory, extra={**trajectory.extra, "judgements": _plain(labels[number])})
        if source is Source.JUDGE and number in labels:
            from verl_toolrl.rewards.judge import judged_rewards

            rewards = judged_rewards(labels[number])
        else:
            rewards = reward(trajectory)
        note = {**rewards.to_dict(), "source": "judge" if source is Source.JUDGE else f"rules:{mode.value}"}
        done.append((replace(trajectory, extra={**trajectory.extra, "step_rewards": note}), rewards))
    _write_jsonl(output, [trajectory for trajectory, _ in done])
    rows = _write_offline(offline, done, template, actions) if offline is not None else None
    _report(read, done, output, offline, rows, judge)
    if failures:
        typer.secho(f"{len(read) - len(done)} trajectories were not judged: {failures[0]}", fg="yellow", err=True)
        raise typer.Exit(NOT_ALL_JUDGED)


def _scorable(trajectory: Trajectory) -> bool:
    return bool(trajectory.steps) and not trajectory.lost_to_infrastructure


def _plain(labels: Sequence[Judgement]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(label) for label in labels]


def _schema_check(path: Path | None) -> Callable[[Any], str | None] | None:
    if path is None:
        return None
    from verl_toolrl.rewards.call_schema import SchemaCheck

    tools = _json(_bytes(path), str(path))
    if not isinstance(tools, list):
        raise DatasetError(f"{path}: wanted a list of tools, found {type(tools).__name__}")
    return SchemaCheck(tools)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise DatasetError(f"{path}: {err.strerror}") from err


def _json(data: bytes, where: str) -> Any:
    import json  # the standard library's: it reads the lone surrogates that a model can write, orjson does not

    try:
        return json.loads(data)
    except (ValueError, RecursionError) as err:
        raise DatasetError(f"{where}: no JSON: {err}") from err


def _read(path: Path) -> list[Trajectory]:
    from verl_toolrl.trajectory import Trajectory

    found = []
    for number, line in enumerate(_bytes(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        data = _json(line, where)
        if not isinstance(data, dict):
            raise DatasetError(f"{where}: wanted an object, found {type(data).__name__}")
        try:
            found.append(_checked(Trajectory.from_dict(data)))
        except (DatasetError, AttributeError) as err:
            raise DatasetError(f"{where}: {err}") from err
    if not found:
        raise DatasetError(f"{path}: no trajectories")
    return found


def _checked(trajectory: Trajectory) -> Trajectory:
    """Check the types that rewards rely on; `from_dict` takes them as they come."""
    for number, step in enumerate(trajectory.steps):
        for name, value, kind in (
            ("text", step.text, str),
            *((f"calls[{k}].name", call.name, str) for k, call in enumerate(step.calls)),
            *((f"calls[{k}].arguments", call.arguments, dict) for k, call in enumerate(step.calls)),
            *((f"results[{k}].content", result.content, str) for k, result in enumerate(step.results)),
        ):
            if not isinstance(value, kind):
                raise DatasetError(f"steps[{number}].{name} is {type(value).__name__}, wanted {kind.__name__}")
    return trajectory


def _ask(judge: Judge, read: Sequence[Trajectory]) -> tuple[dict[int, list[Judgement]], list[InfrastructureError]]:
    """Judge all that can be judged; failures come back as errors, in order."""
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    wanted = [number for number, trajectory in enumerate(read) if _scorable(trajectory)]

    async def run() -> list[Any]:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("judging", total=len(wanted))

            async def one(number: int) -> list[Judgement]:
                try:
                    return await judge.judge(read[number])
                finally:
                    progress.advance(bar)

            async with judge:
                return await asyncio.gather(*(one(number) for number in wanted), return_exceptions=True)

    labels: dict[int, list[Judgement]] = {}
    failures: list[InfrastructureError] = []
    for number, result in zip(wanted, asyncio.run(run())):
        if isinstance(result, InfrastructureError):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            labels[number] = result
    return labels, failures


def _write_jsonl(path: Path, rows: Sequence[Trajectory]) -> None:
    import json

    part = path.with_name(path.name + ".part")  # a killed run leaves no half file under the final name
    part.write_bytes("".join(json.dumps(row.to_dict(), default=str) + "\n" for row in rows).encode())
    part.replace(path)


def _write_offline(path: Path, done: Sequence[tuple[Trajectory, StepRewards]], template: str, actions: Any) -> int:
    from verl_toolrl.rewards.steptool_offline import to_offline, write_offline

    rows = [
        to_offline(trajectory, rewards.step_rewards, template=template, actions=actions)
        for trajectory, rewards in done
        if rewards.valid and trajectory.steps
    ]
    return write_offline(path, rows)


def _report(
    read: Sequence[Trajectory],
    done: Sequence[tuple[Trajectory, StepRewards]],
    output: Path,
    offline: Path | None,
    rows: int | None,
    judge: Judge | None,
) -> None:
    from rich.console import Console
    from rich.table import Table

    scored = [rewards for trajectory, rewards in done if rewards.valid and trajectory.steps]
    table = Table()
    table.add_column("mean a trajectory")
    table.add_column("value", justify="right")

    def mean(name: str, value: Callable[[StepRewards], float]) -> None:
        table.add_row(name, f"{sum(map(value, scored)) / len(scored):.3f}" if scored else "-")

    mean("score", lambda rewards: rewards.score)
    for part in ("succ_calling", "contribution", "is_solved"):
        mean(f"  {part}", lambda rewards, part=part: rewards.components[part])  # type: ignore[misc]
    mean("solved", lambda rewards: rewards.metrics["is_solved"])
    for metric in ("steps", "calls", "successful_calls", "used_calls", "repeated_calls"):
        if scored and metric in scored[0].metrics:
            mean(metric, lambda rewards, metric=metric: rewards.metrics[metric])  # type: ignore[misc]
    console = Console()
    console.print(f"{len(scored)} of {len(read)} trajectories have step rewards", soft_wrap=True)
    console.print(table)
    lost = sum(not rewards.valid for _, rewards in done)
    if lost:
        console.print(f"{lost} lost to infrastructure: no reward, marked invalid")
    if judge is not None:
        console.print(f"judge: {judge.requests} requests, {judge.tokens} tokens; judgements in {judge.cache}")
    console.print(f"wrote {output}", soft_wrap=True)
    if offline is not None:
        console.print(f"wrote {offline} ({rows} rows)", soft_wrap=True)
