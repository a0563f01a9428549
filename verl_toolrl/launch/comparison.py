"""Trains one recipe in several variants with several seeds, and says what came out: what `verl-toolrl compare` does.

A variant is a choice of the recipe's groups: a reward (`variant=coarse`), a method (`method=gdpo`), or any overrides.
Every run has a folder of its own and is skipped once it has finished, so that a comparison that was stopped goes on.
Rewards of different variants have different scales: what is compared are the shares that are watched in every run.

    outputs/compare/
      released-seed1/   a run folder each (`verl-toolrl train`)
      compare.json      settings, commands and every figure
      compare.png
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from verl_toolrl.errors import ConfigError, UnknownNameError
from verl_toolrl.launch.metrics import records_of
from verl_toolrl.launch.preflight import check_recipe
from verl_toolrl.launch.recipes import compose, find_recipe, recipe_folder
from verl_toolrl.launch.runs import Run, load_run

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    *("HEADER", "SHOWN", "Curve", "Variant"),
    *("curves_of", "draw", "planned", "read_variants", "run_all", "summary", "table", "training_of", "write"),
]

SHOWN = ("acc", "layout", "calls/missed", "calls/needless")
"""What is compared: names of `verl_toolrl.rewards.watch`, as validation logs them."""

Curve = list[tuple[int, float]]
"""Step and value."""

_VALIDATION = re.compile(r"val-\w+/(?P<source>.+?)/(?P<name>" + "|".join(map(re.escape, SHOWN)) + r")/mean@\d+")


# A variant that changes one of these may start at another model or be measured on other rows than the first run.
_START = ("data.", "actor_rollout_ref.model", "actor_rollout_ref.rollout.val", "model=", "start=", "launch.checkpoint")


@dataclass(frozen=True)
class Variant:
    """A name and what it changes."""

    name: str
    overrides: tuple[str, ...]


def read_variants(names: Sequence[str]) -> list[Variant]:
    """Read variants: names of the groups `variant` and `method`, or `NAME: OVERRIDE OVERRIDE ...`.

    Raises:
        ConfigError: If a name is unknown or stands there twice.
    """
    groups = {
        path.stem: f"{group}={path.stem}"
        for group in ("method", "variant")
        for path in sorted((recipe_folder() / group).glob("*.yaml"))
    }
    found = []
    for text in names:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon and name not in groups:
            raise UnknownNameError("variant", name, groups)
        if not re.fullmatch(r"[\w.-]+", name) or (colon and not rest):
            raise ConfigError(f"variant {text!r}: wanted a name, or NAME: OVERRIDE OVERRIDE")
        found.append(Variant(name, tuple(rest.split()) if colon else (groups[name],)))
    for variant in found:
        if sum(other.name == variant.name for other in found) > 1:
            raise ConfigError(f"variant {variant.name!r} is given twice")
    return found


def planned(
    variants: Sequence[Variant], seeds: Sequence[int], overrides: Sequence[str]
) -> list[tuple[Variant, int, list[str]]]:
    """Return variant, seed and settings of every run; seeds outermost, so that variants keep pace.

    Before training only the first run is measured where all start alike: the model is the same, and so are the rows.
    """
    alike = not any(word.lstrip("+~").startswith(_START) for variant in variants for word in variant.overrides)
    found: list[tuple[Variant, int, list[str]]] = []
    for seed in seeds:
        for variant in variants:
            measured = f"trainer.val_before_train={'true' if not found or not alike else 'false'}"
            found.append((variant, seed, [*overrides, *variant.overrides, f"data.seed={seed}", measured]))
    return found


def run_all(
    recipe: str,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    overrides: Sequence[str],
    output: Path,
    console: Console,
    *,
    force: bool = False,
) -> dict[tuple[str, int], Run]:
    """Train every variant with every seed, one run after the other.

    Args:
        recipe: Name or path.
        variants: What to compare.
        seeds: Of data order, rollout and optimiser.
        overrides: For all runs.
        output: Folder of the comparison.
        console: Where progress is drawn.
        force: Start even if less memory is free than the recipe needs.

    Returns:
        (variant, seed) -> finished run.

    Raises:
        ConfigError: If a variant is no recipe, before the first run; if a run in the folder is of another recipe or has
            other settings, or a run does not finish.
    """
    from verl_toolrl.launch.launcher import execute, plan_run, report

    plans, found = planned(variants, seeds, overrides), find_recipe(recipe)
    if not force:
        # A mistake in the last variant should not wait for the runs of the others.
        for _, _, settings in plans[: len(variants)]:
            check_recipe(found, settings, compose(found, settings))
    # What a run remembers: the same recipe may be named by different paths.
    label = found.label
    runs: dict[tuple[str, int], Run] = {}
    for variant, seed, settings in plans:
        folder = output / f"{variant.name}-seed{seed}"
        earlier = load_run(folder)
        if earlier is not None and earlier.recipe != label:
            raise ConfigError(f"{folder} is a run of {earlier.recipe}, not of {label}: give another --output")
        if earlier is not None and earlier.attempt.overrides != settings:
            others = " ".join(earlier.attempt.overrides)
            raise ConfigError(f"{folder} was trained with other settings ({others}): give another --output")
        if earlier is not None and earlier.attempt.state == "finished":
            console.print(f"{variant.name}, seed {seed}: has finished before", highlight=False)
            runs[variant.name, seed] = earlier
            continue
        console.rule(f"{variant.name}, seed {seed}")
        plan = plan_run(recipe, settings, output=folder, resume=earlier is not None, force=force)
        run, progress = execute(plan, console)
        if run.attempt.state != "finished":
            report(run, progress, plan, console)
            raise ConfigError(f"{variant.name}, seed {seed} did not finish; the same command goes on there")
        runs[variant.name, seed] = run
    return runs


def curves_of(run: Run) -> tuple[dict[str, dict[str, Curve]], float | None]:
    """Read the validations of a run.

    Returns:
        Data source -> name -> curve, and the median seconds of a training step without a validation (None where the
        run has none).
    """
    curves: dict[str, dict[str, Curve]] = {}
    seconds: list[float] = []
    for step, metrics in records_of(run):
        for key, value in metrics.items():
            match = _VALIDATION.fullmatch(key)
            if match:
                curves.setdefault(match["source"], {}).setdefault(match["name"], []).append((step, value))
        if step > 0 and "timing_s/step" in metrics and not any(key.startswith("val-") for key in metrics):
            seconds.append(metrics["timing_s/step"])
    return curves, median(seconds[1:] or seconds) if seconds else None


def training_of(run: Run) -> dict[str, Curve]:
    """Read the same names from the training log: shares of the samples of each step."""
    logged = {name: name if name.startswith("calls/") else f"reward/{name}" for name in SHOWN}
    return {
        name: [(step, metrics[f"{key}/mean"]) for step, metrics in records_of(run) if f"{key}/mean" in metrics]
        for name, key in logged.items()
    }


def summary(runs: Mapping[tuple[str, int], Run], *, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return everything that is said about a comparison, as JSON-like values.

    Args:
        runs: Finished runs.
        recipe: Name or path.
        overrides: Of all runs.

    Raises:
        ConfigError: If a run has no validation.
    """
    variants: dict[str, Any] = {}
    start: dict[str, dict[str, Curve]] = {}
    for (variant, seed), run in runs.items():
        curves, seconds = curves_of(run)
        if not curves:
            raise ConfigError(f"{run.folder}: its log has no validation; set trainer.test_freq")
        # Where all start alike, the first run was measured for all.
        start = start or {source: {name: c[:1] for name, c in names.items()} for source, names in curves.items()}
        if all(step > 0 for names in curves.values() for curve in names.values() for step, _ in curve):
            curves = {
                source: {name: start.get(source, {}).get(name, []) + curve for name, curve in names.items()}
                for source, names in curves.items()
            }
        entry = variants.setdefault(variant, {"runs": {}, "sources": {}})
        entry["runs"][str(seed)] = {
            "command": run.attempt.command,
            "seconds_a_step": seconds,
            "validations": curves,
            "training": training_of(run),
        }
    for entry in variants.values():
        first = next(iter(entry["runs"].values()))["validations"]
        for source, names in first.items():
            entry["sources"][source] = {
                name: {
                    when: {seed: run["validations"][source][name][at][1] for seed, run in entry["runs"].items()}
                    for when, at in (("before", 0), ("after", -1))
                }
                for name in names
            }
    return {
        "schema": "verl-toolrl/compare/1",
        "recipe": recipe,
        "overrides": list(overrides),
        "variants": variants,
    }


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of text: variant, data source, and each share before and after, the mean and every seed, and seconds.

    A cell of a share has two lines.
    """
    lines = []
    for variant, entry in result["variants"].items():
        for source, names in entry["sources"].items():
            cells = [variant, source]
            for name in SHOWN:
                if name not in names:
                    cells.append("")
                    continue
                before, after = (list(names[name][when].values()) for when in ("before", "after"))
                each = ", ".join(f"{100 * value:.1f}" for value in after)
                cells.append(f"{100 * mean(before):.1f} -> {100 * mean(after):.1f}\n({each})")
            seconds = [run["seconds_a_step"] for run in entry["runs"].values() if run["seconds_a_step"] is not None]
            lines.append([*cells, f"{mean(seconds):.1f}" if seconds else ""])
    return lines


HEADER = ["variant", "held-out rows", *(name.removeprefix("calls/") for name in SHOWN), "s"]
"""Columns of `table`: shares in percent, seconds a step."""


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw each share over the steps: a column a share, a colour a variant, a line style a seed.

    The first row shows the samples of training (mean of four steps), the others the validations of a data source.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ConfigError("the figure needs matplotlib: pip install 'verl-toolrl[plot]'") from err

    sources = list(next(iter(result["variants"].values()))["sources"])
    figure = Figure(figsize=(3.6 * len(SHOWN), 2.8 * (1 + len(sources))), layout="constrained")
    axes = figure.subplots(1 + len(sources), len(SHOWN), squeeze=False)
    for column, name in enumerate(SHOWN):
        for row, source in enumerate([None, *sources]):
            panel = axes[row][column]
            for number, (variant, entry) in enumerate(result["variants"].items()):
                for index, (seed, run) in enumerate(entry["runs"].items()):
                    points = _smooth(run["training"][name]) if source is None else run["validations"][source][name]
                    panel.plot(
                        [step for step, _ in points],
                        [100 * value for _, value in points],
                        color=f"C{number}",
                        linestyle=("-", "--", ":", "-.")[index % 4],
                        marker="" if source is None else ".",
                        label=f"{variant}, seed {seed}",
                    )
            panel.set(title=f"{name} (%), {source or 'samples of training'}", xlabel="step")
            panel.margins(y=0.1)
            if panel.get_ylim()[1] - panel.get_ylim()[0] < 1:  # all the same
                middle = sum(panel.get_ylim()) / 2
                panel.set_ylim(middle - 5, middle + 5)
            panel.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(result["variants"]))
    figure.savefig(path, dpi=110)


def _smooth(points: Curve, steps: int = 4) -> Curve:
    """Mean of so many steps, at the last of them."""
    return [
        (points[at][0], mean(value for _, value in points[at + 1 - steps : at + 1]))
        for at in range(steps - 1, len(points))
    ]


def write(result: Mapping[str, Any], output: Path) -> None:
    """Write `compare.json` and `compare.png`."""
    (output / "compare.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, output / "compare.png")
