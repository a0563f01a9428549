"""The import rules of the package: who may import whom, what stays out of which layer, how light the package is.

The rules are read from the source (every import statement, those inside functions too), so that they hold for what no
test happens to run; how light the package is, is seen in a fresh process.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "verl_toolrl"

# The package follows the data: each name may import the names above it, and itself.
LAYERS = (
    "errors",
    "trajectory",
    "schema",
    "formats",
    "matching",
    "rewards",
    "credit",
    "toolbox",
    "rollout",
    "data",
    "evaluation",
    "integrations",
    "plugin",
    "launch",
    "doctor",
    "recipe_check",
    "cli",
)
# Not in that line: a recipe is data, which anyone may look up, and a tool knows nothing of training.
BESIDE = {"recipes": (), "tools": ("errors", "trajectory", "schema", "toolbox")}

ENGINES = {"verl", "ray", "vllm", "sglang", "transfer_queue"}
MAY_IMPORT_ENGINES = {"integrations", "plugin"}
MAY_IMPORT_TORCH = {"credit", "integrations"}


def source_files() -> list[Path]:
    folders = [PACKAGE, *(PACKAGE / name for name in BESIDE)]  # rglob does not follow the links to recipes and tools
    return sorted({path for folder in folders for path in folder.rglob("*.py")})


def layer_of(module: str) -> str:
    """Return `formats` for `verl_toolrl.formats.hermes`, and an empty text for `verl_toolrl` itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    return ".".join(("verl_toolrl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that a file imports, in functions too, but not for type checkers only."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if node in skipped or isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(node.body if isinstance(node, ast.If) else ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." * bool(node.module) if node.level else ""
            module = base + (node.module or "")
            yield node.lineno, module
            if module == "verl_toolrl":  # from verl_toolrl import formats
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def broken_rules(path: Path) -> list[str]:
    own = layer_of(module_of(path))
    allowed = BESIDE.get(own) if own in BESIDE else LAYERS[: LAYERS.index(own)] if own else ()
    found = []
    for line, name in imports_of(path):
        top, layer = name.split(".")[0], layer_of(name)
        if top == "verl_toolrl" and layer not in ("", "__version__", "recipes", own, *allowed):
            found.append(f"{path}:{line}: {own or 'verl_toolrl'} imports {name}, which stands below it")
        if top in ENGINES and own not in MAY_IMPORT_ENGINES:
            found.append(f"{path}:{line}: only integrations/ may import {top}")
        if top == "torch" and own not in MAY_IMPORT_TORCH:
            found.append(f"{path}:{line}: only {' and '.join(sorted(MAY_IMPORT_TORCH))} may import torch")
    return found


def test_every_module_has_a_place_in_the_layers() -> None:
    unknown = {layer_of(module_of(path)) for path in source_files()} - {"", *LAYERS, *BESIDE}
    assert unknown == set(), "give it a place in LAYERS (and in CONTRIBUTING.md)"


@pytest.mark.parametrize("path", [pytest.param(path, id=module_of(path)) for path in source_files()])
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    assert broken_rules(path) == []


@pytest.mark.parametrize(
    ("where", "text", "message"),
    [
        ("formats/x.py", "from verl_toolrl.rewards import toolrl", "formats imports verl_toolrl.rewards"),
        ("formats/x.py", "from verl_toolrl import cli", "formats imports verl_toolrl.cli"),
        ("formats/x.py", "from ..rewards.base import Reward", "formats imports verl_toolrl.rewards.base"),
        ("formats/x.py", "def f():\n    import verl.utils", "only integrations/ may import verl"),
        ("cli/x.py", "def f():\n    from ray import init", "only integrations/ may import ray"),
        ("rewards/x.py", "import torch.nn as nn", "may import torch"),
        ("tools/x.py", "from verl_toolrl.rollout import loop", "tools imports verl_toolrl.rollout"),
        ("errors.py", "from verl_toolrl import schema", "errors imports verl_toolrl.schema"),
    ],
)
def test_a_broken_rule_is_found(
    where: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert message in "\n".join(broken_rules(path))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("credit/x.py", "import torch\nfrom verl_toolrl.rewards import base\nfrom . import gae"),
        ("integrations/x.py", "import verl, ray\nfrom verl_toolrl.rollout import loop"),
        ("rewards/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_what_is_allowed_is_not_reported(
    where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / where
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert broken_rules(path) == []


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names that `statement` adds to `sys.modules` in a fresh process."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_importing_the_package_loads_only_the_standard_library() -> None:
    assert loaded_by("import verl_toolrl") - sys.stdlib_module_names == {"verl_toolrl"}


def test_the_command_line_starts_without_anything_heavy() -> None:
    heavy = {"torch", "ray", "verl", "vllm", "numpy", "scipy", "pyarrow", "pandas", "pydantic", "transformers", "mcp"}
    assert loaded_by("import verl_toolrl.cli") & heavy == set()


def test_the_core_loads_neither_torch_nor_an_engine() -> None:
    core = [module_of(path) for path in source_files()]
    core = [
        name for name in core if layer_of(name) in LAYERS[: LAYERS.index("integrations")] and layer_of(name) != "credit"
    ]
    assert loaded_by(f"import {', '.join(core)}") & (ENGINES | {"torch", "transformers"}) == set()


def test_contributing_lists_the_layers_in_their_order() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert rows == list(LAYERS)
