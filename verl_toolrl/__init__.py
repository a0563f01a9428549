"""Tool-use reinforcement learning for verl: rewards, step credit, tools, rollouts and recipes.

Importing this package is light: it loads neither torch nor ray nor verl. verl finds what we bring by itself, through
the entry point `verl.plugins` (see `verl_toolrl.plugin`).
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("verl-toolrl")
except PackageNotFoundError:  # a source tree on PYTHONPATH that nobody installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__"]
