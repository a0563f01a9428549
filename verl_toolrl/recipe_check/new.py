"""A commented start for a recipe of one's own."""

from __future__ import annotations

from pathlib import Path

from verl_toolrl.errors import ConfigError
from verl_toolrl.launch.recipes import find_recipe, verl_configs

__all__ = ["write_recipe"]

_TEMPLATE = """\
# @package _global_
#
# {title}: builds on {like}, and says only what is different.
#
#   verl-toolrl recipes check {file}
#   verl-toolrl recipes show {file}
#   verl-toolrl train {file}
#   python -m verl.trainer.main_ppo --config-dir {folder} --config-name {stem}
defaults:
  - /{like}
  - _self_
  # Other choices than those of {like}; `verl-toolrl recipes list` prints all.
{choices}
  # The reward. released: the authors' scorer; paper: the paper's formulas; robust: what we would train with.
  - override /variant: robust

recipe:
  title: {title}
  reproduces: no row of a paper
  ran: not run yet

data:
  # Parquet in verl's format (`verl-toolrl data check` looks at it). A list of files is allowed.
  train_files: ~/data/{stem}/train.parquet
  val_files: ~/data/{stem}/test.parquet
{data}
actor_rollout_ref:
  actor:
    optim:
      lr: 1.0e-6
  rollout:
    # Rollouts a prompt; GRPO needs 2 or more.
    n: 4

trainer:
  experiment_name: {stem}
  # Steps between two checkpoints, and between two validations.
  save_freq: 20
  test_freq: 10
"""

_CHOICES = """\
  - override /model: qwen2.5_3b
  - override /hardware: gpu1
  # - override /engine: megatron
  # - override /rollout: sglang"""
_CPU_CHOICES = "  # - override /model: tiny"
_DATA = """\
  # Prompts of a step; the updates of a step are train_batch_size / ppo_mini_batch_size.
  train_batch_size: 512
  max_prompt_length: 2048
  max_response_length: 1024
"""


def write_recipe(path: Path, like: str) -> None:
    """Write a recipe that passes the check.

    Args:
        path: File to write; it must not exist.
        like: Name of one of our recipes for the RL trainer, which the new one builds on.

    Raises:
        ConfigError: If the file exists, its name is not one Hydra can find, or `like` is no recipe to build on.
        UnknownNameError: If there is no recipe `like`.
    """
    from verl_toolrl.launch.recipes import known_recipes, recipe_folder

    find_recipe(like)
    if like not in known_recipes() or "sft_trainer" in (recipe_folder() / f"{like}.yaml").read_text(encoding="utf-8"):
        raise ConfigError(f"--like {like}: a recipe for the RL trainer is wanted, such as toolrl/grpo")
    if path.suffix != ".yaml":
        raise ConfigError(f"{path}: Hydra reads files ending in .yaml only")
    if (verl_configs() / path.name).is_file():
        raise ConfigError(f"{path}: Hydra would take verl's own configuration of that name: take another")
    if path.exists():
        raise ConfigError(f"{path} exists already: take another name, or remove it")
    on_cpu = like.endswith("quickstart")
    text = _TEMPLATE.format(
        title=path.stem.replace("_", " "),
        like=like,
        file=path,
        stem=path.stem,
        folder=path.resolve().parent,
        choices=_CPU_CHOICES if on_cpu else _CHOICES,
        data="" if on_cpu else _DATA,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
