"""`verl-toolrl data rlla` and `data convert`: other people's data to verl's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError

__all__ = ["convert", "rlla"]


def rlla(
    raw: Annotated[Path, typer.Argument(help="Rows {instruction, input, output}: rlla_rl.json or rlla_sft.json.")],
    output: Annotated[Path, typer.Argument(help="Folder for the files; new or empty.")],
    sft: Annotated[bool, typer.Option("--sft", help="Write sft.parquet for supervised training instead.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
) -> None:
    """Make ToolRL's training and test files from its raw rows, as its authors split them (seed 31415, 2 % to test).

    The file is not part of this package. The authors keep it at github.com/qiancheng0/ToolRL in dataset/rlla_4k_raw
    (rlla_rl.json for RL, rlla_sft.json for supervised training). Without it: `verl-toolrl data make` makes rows of any
    number, `verl-toolrl data convert` takes those of the sources.

    Example: verl-toolrl data rlla rlla_rl.json data
    """
    from verl_toolrl.data.rlla import released_row, released_split, sft_row
    from verl_toolrl.data.rows import read_rows
    from verl_toolrl.rewards.ground_truth import parse_ground_truth

    _refuse_full(output)
    rows = read_rows(raw, as_they_are=True)

    def checked(row: Any, index: int) -> Any:
        sft_row(row if isinstance(row, dict) else {}, index=index)
        parse_ground_truth(row["output"], f"row {index}: output")
        return row

    good = dict(_converted(rows, lambda row, index: [(index, checked(row, index))], skip_bad))
    if sft:
        _write(output, {"sft": [sft_row(row, index=index) for index, row in enumerate(good.values())]})
        return
    # All rows are shuffled, the bad ones too: without them others would land in the test split than the authors'.
    train, test = ([good[index] for index in part if index in good] for part in released_split(range(len(rows))))
    splits = {"train": train, "test": test}
    _write(
        output,
        {
            split: [released_row(row, index=index, split=split) for index, row in enumerate(part)]
            for split, part in splits.items()
        },
    )


def convert(
    source: Annotated[Path, typer.Argument(help=".json, .jsonl or .parquet.")],
    output: Annotated[Path, typer.Argument(help="Folder for the files; new or empty.")],
    layout: Annotated[
        str, typer.Option(help="openai, toolace, xlam or hammer; auto: by the keys of each row.")
    ] = "auto",
    data_source: Annotated[
        str | None, typer.Option(help="Name under which validation reports the rows. Default: the layout.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="toolrl: tools inside the prompt; native: in a column, for the model's chat template.")
    ] = "toolrl",
    style: Annotated[
        str | None, typer.Option(help="Of ToolRL's prompt: full, or short (fewer tokens). Default: full.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How calls in the messages of native rows are written. Default: hermes.")
    ] = None,
    last_only: Annotated[
        bool, typer.Option("--last-only", help="A row for the last answer of a dialogue, not for each.")
    ] = False,
    test_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the source's rows to test on.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 31415,
    sft: Annotated[
        bool, typer.Option("--sft", help="Write supervised rows too: sft.parquet, from training rows.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take that many of the source's rows, by the seed.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
) -> None:
    """Turn tool-use data of a public layout into verl's rows, with ToolRL's prompt or for the chat template.

    Reads OpenAI-style messages with tools, ToolACE, xLAM-60k (and XLAM-7.5k-Irrelevance) and Hammer's masked rows. Each
    answer of the assistant becomes a row with the dialogue before it as history. Rows of one dialogue stay in one file.

    Example: verl-toolrl data convert xlam_function_calling_60k.json data --limit 1000
    """
    from verl_toolrl.cli.options import refuse_without_effect
    from verl_toolrl.data.dialogues import dialogue_rows, sft_rows
    from verl_toolrl.data.layouts import LAYOUTS, detect_layout
    from verl_toolrl.data.rlla import released_split
    from verl_toolrl.data.rows import read_rows
    from verl_toolrl.data.world.prompts import STYLES
    from verl_toolrl.data.world.spec import FORMATS
    from verl_toolrl.formats import get_dialect

    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    refuse_without_effect("--style", style, "toolrl", format)
    refuse_without_effect("--dialect", dialect, "native", format)
    style, dialect = style or "full", dialect or "hermes"
    get_dialect(dialect)
    if layout != "auto" and layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, [*LAYOUTS, "auto"])
    if style not in STYLES:
        raise UnknownNameError("style", style, STYLES)
    _refuse_full(output)
    rows = list(enumerate(read_rows(source, as_they_are=True)))
    if limit is not None:
        rows = sorted(released_split(rows, seed=seed, test_share=0.0)[0][:limit])

    def converted(row: Any, index: int) -> list[Any]:
        name = detect_layout(row) if layout == "auto" else layout
        if not isinstance(row, dict):
            raise DatasetError(f"{type(row).__name__}, wanted an object")
        dialogue = LAYOUTS[name](row)
        source_name = data_source or name
        made = dialogue_rows(
            dialogue, data_source=source_name, format=format, style=style, dialect=dialect, last_only=last_only
        )
        return [made]

    groups = _converted([row for _, row in rows], converted, skip_bad, numbers=[number for number, _ in rows])
    train, test = released_split(groups, seed=seed, test_share=test_share)
    splits = {"train": [row for group in train for row in group], "test": [row for group in test for row in group]}
    for split, part in splits.items():
        for index, row in enumerate(part):
            row["extra_info"] = {"index": index, "split": split, **row["extra_info"]}
    if sft:
        splits["sft"] = sft_rows(splits["train"], dialect)
    _write(output, splits)


_SHOWN = 5


def _converted(
    rows: Sequence[Any],
    convert_row: Callable[[Any, int], list[Any]],
    skip_bad: bool,
    numbers: Sequence[int] | None = None,
) -> list[Any]:
    """Convert each row, and stop with all that is wrong, or say it and go on.

    Raises:
        DatasetError: If a row is bad and bad rows are not left out, or none is left.
    """
    found: list[Any] = []
    problems: list[str] = []
    for position, row in enumerate(rows):
        number = position if numbers is None else numbers[position]
        try:
            found += convert_row(row, number)
        except DatasetError as err:
            text = str(err)
            problems.append(text if text.startswith(f"row {number}:") else f"row {number}: {text}")
    if problems:
        shown = [*problems[:_SHOWN], *([f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])]
        if not skip_bad:
            hint = "--skip-bad leaves them out"
            raise DatasetError(f"{len(problems)} of {len(rows)} rows are bad ({hint}):\n  " + "\n  ".join(shown))
        typer.echo(f"{len(problems)} of {len(rows)} rows are bad and left out:\n  " + "\n  ".join(shown), err=True)
    if not found:
        raise DatasetError("no rows")
    return found


def _refuse_full(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is no empty folder; name a new one")


def _write(output: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    import pyarrow
    import pyarrow.parquet

    output.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        if rows:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), output / f"{split}.parquet")
            typer.echo(f"{output / f'{split}.parquet'}: {len(rows)} rows")
