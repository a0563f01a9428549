"""Comparing variants: which there are, what is read from the logs of runs, and what the table says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from verl_toolrl.cli import app
from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.comparison import (
    SHOWN,
    Variant,
    curves_of,
    planned,
    read_variants,
    run_all,
    summary,
    table,
    training_of,
    write,
)
from verl_toolrl.launch.runs import Attempt, Run, load_run, new_run
from verl_toolrl.rewards.watch import WATCHED


def test_names_are_those_of_the_recipes_groups() -> None:
    found = read_variants(["released", " gdpo", "mine: method=gdpo variant=robust algorithm.gamma=0.9"])
    assert [("variant=released",), ("method=gdpo",)] == [variant.overrides for variant in found[:2]]
    assert ("mine", ("method=gdpo", "variant=robust", "algorithm.gamma=0.9")) == (found[2].name, found[2].overrides)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["relased"], "did you mean 'released'"), (["coarse", "coarse"], "given twice"), (["a b: x=1"], "wanted a name")],
    ids=["unknown", "twice", "no name"],
)
def test_a_variant_that_cannot_be_run_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_variants(names)


@pytest.mark.parametrize("seeds", ["1,x", "1,1", "-1"])
def test_seeds_are_different_whole_numbers(seeds: str) -> None:
    assert "--seeds" in str(CliRunner().invoke(app, ["compare", "--seeds", seeds]).exception)


def test_what_is_compared_is_what_every_reward_is_watched_by() -> None:
    assert set(SHOWN) <= set(WATCHED)


@pytest.mark.parametrize(
    ("second", "measured"),
    [("variant=coarse", [True, False, False, False]), ("actor_rollout_ref.model.path=/another", [True] * 4)],
    ids=["all start alike", "one starts at another model"],
)
def test_a_start_that_all_share_is_measured_once(second: str, measured: list[bool]) -> None:
    runs = planned([Variant("a", ("variant=released",)), Variant("b", (second,))], [1, 2], ["trainer.test_freq=9"])
    assert [("a", 1), ("b", 1), ("a", 2), ("b", 2)] == [(variant.name, seed) for variant, seed, _ in runs]
    assert measured == ["trainer.val_before_train=true" in settings for _, _, settings in runs]
    assert all({"trainer.test_freq=9", f"data.seed={seed}"} <= set(settings) for _, seed, settings in runs)


def test_what_was_measured_once_is_the_start_of_every_run(tmp_path: Path) -> None:
    first, other = finished_run(tmp_path / "a", 0.1, 0.2), finished_run(tmp_path / "b", 0.3, first=6)
    result = summary({("released", 1): first, ("coarse", 1): other}, recipe="x", overrides=[])
    assert [[0, 0.1], [6, 0.3]] == json.loads(json.dumps(result["variants"]["coarse"]["runs"]["1"]["validations"]))[
        "rlla"
    ]["acc"]
    assert ["10.0 -> 20.0\n(20.0)", "10.0 -> 30.0\n(30.0)"] == [row[2] for row in table(result)]


def finished_run(folder: Path, *values: float, first: int = 0) -> Run:
    """A run with validations at step `first` and after each one that follows, whose log holds `values`."""
    run = new_run(folder, "toolrl/quickstart", [])
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step, value in enumerate(values, first):
        shares = {f"val-aux/rlla/{name}/mean@1": value / 2 for name in SHOWN[1:]}
        # Steps with a validation take longer; they say nothing of a step's time.
        data: dict[str, Any] = {"val-core/rlla/acc/mean@1": value, "timing_s/step": 100.0, **shares}
        lines.append({"step": step, "data": data})
        lines.append({"step": step + 100, "data": {"timing_s/step": 2.0 + step, "reward/acc/mean": 0.9}})
    run.file("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert isinstance(run.attempt, Attempt)
    return run


def compared(folder: Path) -> dict[str, Any]:
    runs = {
        ("released", 1): finished_run(folder / "a", 0.1, 0.2, 0.5),
        ("released", 2): finished_run(folder / "b", 0.1, 0.2, 0.3),
        ("coarse", 1): finished_run(folder / "c", 0.1, 0.2),
    }
    return summary(runs, recipe="toolrl/quickstart", overrides=["data.seed=1"])


def test_curves_are_read_by_data_source(tmp_path: Path) -> None:
    curves, seconds = curves_of(finished_run(tmp_path / "run", 0.25, 0.5))
    assert [(0, 0.25), (1, 0.5)] == curves["rlla"]["acc"]
    assert [(0, 0.125), (1, 0.25)] == curves["rlla"]["calls/missed"]
    assert 3.0 == seconds  # 2 and 3 seconds; the first step is left out


def test_what_training_logs_is_read_beside(tmp_path: Path) -> None:
    curves = training_of(finished_run(tmp_path / "run", 0.25, 0.5))
    assert set(SHOWN) == set(curves)
    assert [(100, 0.9), (101, 0.9)] == curves["acc"] and [] == curves["calls/missed"]


def test_the_table_has_the_mean_and_every_seed(tmp_path: Path) -> None:
    rows = table(compared(tmp_path))
    assert [["released", "rlla"], ["coarse", "rlla"]] == [row[:2] for row in rows]
    assert ["10.0 -> 40.0\n(50.0, 30.0)", "10.0 -> 20.0\n(20.0)"] == [row[2] for row in rows]


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="recipes are found beside verl's")
def test_what_has_finished_counts_only_for_the_same_recipe_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [/toolrl/quickstart, _self_]\n")
    run = new_run(
        tmp_path / "out" / "released-seed1",
        str(mine),
        ["variant=released", "data.seed=1", "trainer.val_before_train=true"],
    )
    run.attempt.state = "finished"
    run.folder.mkdir(parents=True)
    run.save()
    assert load_run(run.folder) is not None

    def compare(recipe: str, *overrides: str) -> list[tuple[str, int]]:
        variants = [Variant("released", ("variant=released",))]
        return list(run_all(recipe, variants, [1], overrides, tmp_path / "out", Console()))

    # Named by another path, it is the same recipe.
    assert [("released", 1)] == compare("mine.yaml") == compare(str(mine))
    with pytest.raises(ConfigError, match="is a run of .*mine.yaml, not of toolrl/quickstart: give another --output"):
        compare("toolrl/quickstart")
    with pytest.raises(ConfigError, match="with other settings"):
        compare("mine.yaml", "trainer.total_training_steps=3")


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="recipes are found beside verl's")
def test_a_mistake_in_the_last_variant_is_found_before_the_first_run(tmp_path: Path) -> None:
    variants = [Variant("released", ("variant=released",)), Variant("typo", ("+trainer.tset_freq=3",))]
    with pytest.raises(ConfigError, match="tset_freq.*did you mean 'test_freq'"):
        run_all("toolrl/quickstart", variants, [1], [], tmp_path / "out", Console())
    assert not (tmp_path / "out").exists()


def test_figure_and_figures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    result = compared(tmp_path)
    write(result, tmp_path)
    assert json.loads(json.dumps(result)) == json.loads((tmp_path / "compare.json").read_text())
    assert b"\x89PNG" == (tmp_path / "compare.png").read_bytes()[:4]


def test_a_run_without_a_validation_cannot_be_compared(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no validation; set trainer\.test_freq"):
        summary({("released", 1): run}, recipe="x", overrides=[])
