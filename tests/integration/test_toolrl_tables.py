"""The commands of recipes/toolrl/README.md, which train each row of the paper's tables: all pass the check."""

from __future__ import annotations

import importlib.util
import re
import shlex

import pytest

from verl_toolrl.launch.recipes import compose, find_recipe, recipe_folder

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl", allow_module_level=True)

from verl_toolrl.recipe_check.check import check_recipe

HUB = {
    "qwen2.5_1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5_3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B-Instruct",
}


def commands() -> list[tuple[str, list[str]]]:
    """Commands of the tables, each with the models of its table's columns (none for a command that needs no model)."""
    found: list[tuple[str, list[str]]] = []
    models: list[str] = []
    for line in (recipe_folder() / "toolrl" / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| row |"):
            models = re.findall(r"`([\w.]+)`", line)
        found += [(command, models) for command in re.findall(r"`(toolrl/\w+(?: [\w.+=/]+)+)`", line) if "|" in line]
    return [item for item in dict.fromkeys((command, tuple(models)) for command, models in found)]  # type: ignore[misc]


def words_of(command: str, model: str) -> tuple[str, list[str]]:
    name, *overrides = shlex.split(command.replace("MODEL", model).replace("=HF", f"={HUB.get(model, '')}"))
    return name, overrides


# Each command once, with one model after the other; every model is checked with every engine elsewhere.
CHECKED = [
    pytest.param(*words_of(command, models[number % len(models)] if models else ""), id=command)
    for number, (command, models) in enumerate(commands())
]


def test_the_tables_name_a_command_for_every_row_that_was_trained() -> None:
    text = (recipe_folder() / "toolrl" / "README.md").read_text(encoding="utf-8")
    tables = [table.split("\n\n")[0].splitlines()[2:] for table in text.split("\n| row |")[1:]]
    # Tables 1 to 3 with 10 to 12, then 5, 6 and 7, then other papers.
    assert [9, 3, 4, 4, 4] == [len(rows) for rows in tables]
    assert ["Raw"] == [row.split("|")[1].strip() for rows in tables for row in rows if "`toolrl/" not in row]


@pytest.mark.parametrize(("name", "overrides"), CHECKED)
def test_a_command_of_the_tables_passes_the_check(name: str, overrides: list[str]) -> None:
    assert check_recipe(find_recipe(name), overrides).findings == []


@pytest.mark.parametrize("model", HUB)
def test_the_model_at_the_head_of_a_column_is_the_one_that_is_trained(model: str) -> None:
    composed = compose(find_recipe("toolrl/grpo"), [f"model={model}"])
    assert composed.get("actor_rollout_ref.model.path") == HUB[model]
    started = compose(find_recipe("toolrl/ppo"), [f"model={model}", "start=sft", "launch.checkpoint=/runs/sft400"])
    assert started.get("actor_rollout_ref.model.path") == "/runs/sft400"
    assert started.get("critic.model.path") == "/runs/sft400"
