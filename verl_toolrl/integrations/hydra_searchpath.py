"""Lets Hydra find our recipes, so that `--config-name toolrl/grpo` works with verl's own trainer."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["RecipeSearchPath"]


class RecipeSearchPath(SearchPathPlugin):
    """Appends `pkg://verl_toolrl.recipes` behind verl's own configuration folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl-toolrl", path="pkg://verl_toolrl.recipes")


Plugins.instance().register(RecipeSearchPath)
