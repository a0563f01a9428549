"""`verl-toolrl data make`: rows from the schemas of a tool set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_toolrl.errors import ConfigError

if TYPE_CHECKING:
    from verl_toolrl.data.world import World

__all__ = ["make"]


def make(
    toolset: Annotated[
        str,
        typer.Argument(help="A .py or YAML file, a ready-made name (quickstart) or a module path (my_package.tools)."),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the files; new or empty.")],
    seed: Annotated[int, typer.Option(help="The same seed and tools give the same rows.")] = 1,
    train: Annotated[int, typer.Option(min=0, help="Rows to train on by RL.")] = 512,
    sft: Annotated[int, typer.Option(min=0, help="Rows for a supervised warm-up.")] = 64,
    held_out: Annotated[int, typer.Option(min=0, help="Held-out rows with calls of tools that training shows.")] = 256,
    unseen: Annotated[
        int, typer.Option(min=0, help="Held-out rows with calls of tools that training never shows.")
    ] = 64,
    no_tool: Annotated[int, typer.Option(min=0, help="Held-out rows where no call is right.")] = 64,
    unseen_tools: Annotated[
        str | None, typer.Option(help="Names of the unseen tools, with commas. By default about a fifth, by the seed.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="toolrl: tools inside the prompt; native: in a column, for the model's chat template.")
    ] = "toolrl",
    style: Annotated[
        str | None, typer.Option(help="Of ToolRL's prompt: short (few tokens) or full. Default: short.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How supervised rows of the native format write calls. Default: hermes.")
    ] = None,
    tools: Annotated[str, typer.Option(help="Tools on a row's list: a number or a range, such as 2-3.")] = "2-3",
    lists: Annotated[
        int | None,
        typer.Option(min=1, help="Lists of tools that the held-out rows share. By default one a row."),
    ] = None,
    max_calls: Annotated[int, typer.Option(min=2, help="Calls at most in a row with parallel calls.")] = 2,
    mix: Annotated[
        str | None, typer.Option(help="Shares of the kinds: one=9,parallel=3,lookup=3,computed=2,talk=1,missing=2.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer (folder or name) to measure prompts with.")] = None,
    min_prompt: Annotated[
        int, typer.Option(min=0, help="Lengthen every prompt to this, in tokens with --tokenizer, else in words.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make rows to train and to measure tool use with, from the schemas of any tool set.

    Writes train.parquet, sft.parquet, seen.parquet, unseen.parquet, no_tool.parquet and world.json. Each held-out file
    has its own data_source, so that verl's validation reports them apart. No question stands in two files.

    Example: verl-toolrl data make quickstart data --train 1024 --tools 2-4
    """
    from verl_toolrl.cli.options import refuse_without_effect, token_counter
    from verl_toolrl.data.world import WorldSpec, make_world, write_world
    from verl_toolrl.data.world.files import split_numbers
    from verl_toolrl.data.world.splits import DEFAULT_MIX, read_mix

    refuse_without_effect("--style", style, "toolrl", format)
    refuse_without_effect("--dialect", dialect, "native", format)
    count_tokens = token_counter(tokenizer) if tokenizer else None
    spec = WorldSpec(
        toolset=toolset,
        seed=seed,
        train=train,
        sft=sft,
        seen=held_out,
        unseen=unseen,
        no_tool=no_tool,
        format=format,
        style=style or "short",
        dialect=dialect or "hermes",
        tools=_range(tools),
        lists=lists,
        max_calls=max_calls,
        mix=read_mix(mix) if mix else dict(DEFAULT_MIX),
        unseen_tools=None if unseen_tools is None else tuple(name.strip() for name in unseen_tools.split(",")),
        min_prompt=min_prompt,
    )
    world = make_world(spec, count_tokens=count_tokens)
    files = write_world(world, output)
    numbers = {split: split_numbers(world, split, count_tokens=count_tokens) for split in files}
    if as_json:
        import json

        typer.echo(json.dumps({"files": {split: str(file) for split, file in files.items()}, **numbers}, indent=1))
    else:
        _print(world, output, numbers)


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    try:
        return int(least), int(most or least)
    except ValueError as err:
        raise ConfigError(f"--tools {text!r}: wanted a number or a range, such as 2-3") from err


def _print(world: World, output: Path, numbers: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from verl_toolrl.data.world import Kind

    console = Console(highlight=False)
    unit = next(iter(numbers.values()))["length_unit"] if numbers else "words"
    table = Table(
        title=f"{world.spec.toolset}, seed {world.spec.seed}; length of prompts in {unit}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for column in ("", "rows", "tools", "calls", "parameters", "shortest", "median", "95 %", "longest"):
        table.add_column(column, justify="right" if column else "left")
    for split, found in numbers.items():
        cells = [found[key] for key in ("rows", "tools", "calls", "parameters")]
        table.add_row(split, *map(str, (*cells, *found["prompt_length"].values())))
    console.print(table)
    for split, found in numbers.items():
        kinds = ", ".join(f"{kind.value} {found['kinds'][kind.value]}" for kind in Kind if kind.value in found["kinds"])
        new = f"; {found['new_wordings']} in new words" if found["new_wordings"] else ""
        console.print(f"{split}: {kinds}{new}", soft_wrap=True)
    if world.unseen_tools:
        console.print(f"unseen tools: {', '.join(world.unseen_tools)}", soft_wrap=True)
    console.print(f"written to {output}, with world.json", soft_wrap=True)
