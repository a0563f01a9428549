"""What `verl-toolrl train` asks before a start: the check of the recipe, and the first row of each data file, scored.

Run as `python -m verl_toolrl.recipe_check.before_start [--rows] -- RECIPE [OVERRIDE ...]`, in a process of its own: the
check imports modules of the user and, for a name that stands in no source, all of verl. Standard output is one object,

    {"refused": ["mine.yaml:7: trainer.tset_freq: unknown key, ..."], "noted": []}

What is imported may print what it likes: that goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from verl_toolrl.errors import AuthorError
from verl_toolrl.launch.preflight import data_files, has_our_rows
from verl_toolrl.launch.recipes import Composed, compose, find_recipe
from verl_toolrl.recipe_check.check import check_composed
from verl_toolrl.recipe_check.finding import Finding

__all__ = ["inspect", "main"]


def inspect(recipe_text: str, overrides: list[str], *, rows: bool) -> dict[str, list[str]]:
    """Return what a start must be refused for (`refused`), and what else the check says (`noted`).

    Args:
        recipe_text: Name or path of the recipe.
        overrides: Hydra overrides of the user.
        rows: Whether the data files are there to be looked into.

    Raises:
        ConfigError: The recipe does not exist or does not compose.
    """
    recipe = find_recipe(recipe_text)
    composed = compose(recipe, overrides)
    findings = check_composed(recipe, composed, overrides).findings
    refused = [_text(finding) for finding in findings if finding.is_error or finding.is_left]
    noted = [finding.text for finding in findings if not (finding.is_error or finding.is_left)]
    if rows and not refused:
        for is_wrong, text in _first_rows(composed):
            (refused if is_wrong else noted).append(text)
    return {"refused": refused, "noted": noted}


def _text(finding: Finding) -> str:
    return f"{finding.text} ({finding.key}=...)" if finding.message == "must be given" else finding.text


def _first_rows(composed: Composed) -> Iterator[tuple[bool, str]]:
    """Yield what is wrong with the first row of each file, and whether that is certain."""
    if not has_our_rows(composed) or composed.get("reward.reward_manager.name") != "toolrl":
        return
    from verl_toolrl.integrations.rows import check_row, rows_of
    from verl_toolrl.rewards import configured_reward

    reward = configured_reward(_reward_options(composed))
    for key, file in data_files(composed):
        try:
            for where, row in rows_of([file]):
                check_row(row, reward, where)
                break
        except AuthorError as err:
            yield True, f"{key}: {err}"
        except Exception as err:  # a user's function may raise what it likes; the trainer says how it takes that
            yield False, f"{key}: its first row could not be scored: {type(err).__name__}: {err}"


def _reward_options(composed: Composed) -> dict[str, Any]:
    from omegaconf import OmegaConf

    node = composed.get("reward.reward_kwargs")
    return dict(OmegaConf.to_container(node, resolve=True)) if node is not None else {}  # type: ignore[arg-type]


def main() -> None:
    """Answer for one start."""
    parser = argparse.ArgumentParser(prog="before_start", description="Internal: asked by verl-toolrl train.")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    gc.disable()  # a tenth of the time, with nothing to collect
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        found = inspect(given.recipe, given.overrides, rows=given.rows)
        json.dump(found, answer)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
