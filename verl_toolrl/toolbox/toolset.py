"""Tool sets: which tools a recipe trains with, in YAML or as a module path.

    # my_tools.yaml
    tools:
      - calculator                          # ready-made: a file of verl_toolrl/tools
      - my_package.tools                    # every tool of a module
      - my_package.tools:lookup             # one tool, one StatefulTool class, or a function that returns tools
      - ./more_tools.py                     # a file, relative to this one
      - use: sqlite_db                      # the same, changed:
        config: {database: shop.db}         #   keywords for the class or the function
        only: [query]                       #   of its tools, these
        rename: {query: sql}
        name: Shop                          #   name of its state, to use a class twice
        isolation: thread
        limits: {timeout: 5, output_tokens: 500}
      - mcp: {command: python, args: [server.py], sessions: 2}
        prefix: files_
      - openapi: {spec: petstore.yaml, base_url: "https://pets.example.org"}
      - http: {name: get_pet, method: GET, url: "https://pets.example.org/pet/{id}", description: ...}
    limits: {timeout: 10}                   # for every tool that does not say otherwise itself
    budget: {calls: 20, seconds: 120}       # of a trajectory
    recording: {path: answers.jsonl, mode: cache}

A mistake raises when the set is loaded, with file, entry, what was found and what was wanted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from verl_toolrl.errors import ConfigError, ToolDefinitionError, ToolRLError, UnknownNameError, nearest
from verl_toolrl.toolbox.box import Toolbox, ToolSource
from verl_toolrl.toolbox.limits import Budget, Limits
from verl_toolrl.toolbox.recording import Recording
from verl_toolrl.toolbox.tool import StatefulTool, Tool

__all__ = ["load_toolset", "ready_made", "resolve_tools"]

_READY_MADE = "verl_toolrl.tools"
_SET_KEYS = ("name", "tools", "limits", "budget", "recording", "threads", "watchdog")
_KINDS = ("use", "mcp", "openapi", "http")
_ENTRY_KEYS = (*_KINDS, "config", "name", "only", "rename", "prefix", "isolation", "limits")


def ready_made() -> dict[str, Path]:
    """Return the files of ready-made tools and tool sets by name."""
    folder = Path(importlib.import_module(_READY_MADE).__path__[0])
    found = [*folder.glob("*.py"), *folder.glob("*.yaml")]
    return {each.stem: each for each in sorted(found) if not each.stem.startswith("_")}


def load_toolset(where: str | Path, **options: Any) -> Toolbox:
    """Build a toolbox; see `Toolbox.load`."""
    path = _yaml_path(where)
    if path is None:
        tools = _located(f"tool set {where}", lambda: resolve_tools(str(where), base=Path.cwd()))
        return Toolbox(tools, **{"name": str(where), **options})
    label = f"tool set {path}"
    data = _read(path, label)
    settings: dict[str, Any] = {"name": data.get("name", path.stem)}
    for key, build in (("budget", Budget.from_mapping), ("recording", functools.partial(_recording, path.parent))):
        if data.get(key) is not None:
            settings[key] = _located(f"{label}: {key}", functools.partial(build, data[key]))
    settings.update({key: data[key] for key in ("threads", "watchdog") if key in data})
    defaults = data.get("limits") or {}
    _located(f"{label}: limits", lambda: Limits().replaced(defaults))
    tools = []
    for number, entry in enumerate(data["tools"], 1):
        tools += _located(f"{label}: tools[{number}]", functools.partial(_entry, entry, path.parent, defaults))
    return _located(label, lambda: Toolbox(tools, **{**settings, **options}))


def _yaml_path(where: str | Path) -> Path | None:
    text = str(where)
    if text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ConfigError(f"tool set {text}: no such file (looked in {Path.cwd()})")
        return path
    known = ready_made()
    return known[text] if text in known and known[text].suffix == ".yaml" else None


def _read(path: Path, label: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{label}: not readable as YAML: {err}") from err
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: wanted a mapping with the key 'tools', found {type(data).__name__}")
    _known_keys(label, data, _SET_KEYS)
    if not isinstance(data.get("tools"), list) or not data["tools"]:
        raise ConfigError(f"{label}: 'tools' must be a list with at least one entry, found {data.get('tools')!r}")
    return data


def _known_keys(label: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{label}: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")


def _recording(base: Path, data: Mapping[str, Any]) -> Recording:
    if not isinstance(data, Mapping) or set(data) != {"path", "mode"}:
        raise ConfigError(f"wanted a mapping with path and mode, found {data!r}")
    return Recording(base / str(data["path"]), data["mode"])


def _located(label: str, build: Callable[[], Any]) -> Any:
    """Run `build`; an author's mistake gets the place in front."""
    try:
        return build()
    except UnknownNameError as err:
        raise ConfigError(f"{label}: {err}") from err
    except ToolRLError as err:
        kind = ToolDefinitionError if isinstance(err, ToolDefinitionError) else ConfigError
        raise kind(f"{label}: {err}") from err


def _entry(entry: Any, base: Path, defaults: Mapping[str, Any]) -> list[Any]:
    if isinstance(entry, str):
        entry = {"use": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"wanted a name or a mapping, found {entry!r}")
    _known_keys("entry", entry, _ENTRY_KEYS)
    kinds = [key for key in _KINDS if key in entry]
    if len(kinds) != 1:
        raise ConfigError(f"wanted exactly one of {', '.join(_KINDS)}; found {', '.join(kinds) or 'none'}")
    change = functools.partial(_changed, entry=entry, defaults=defaults)
    if kinds[0] == "use":
        config = dict(entry.get("config") or {})
        return change(resolve_tools(str(entry["use"]), base=base, config=config, state_name=entry.get("name")))
    for key in ("config", "name"):
        if key in entry:
            raise ConfigError(f"{key!r} belongs to 'use'; options of {kinds[0]!r} stand inside it")
    if kinds[0] == "mcp":
        from verl_toolrl.toolbox.mcp import McpServer

        return [_ChangedSource(_build(McpServer, entry["mcp"], "mcp"), change)]
    from verl_toolrl.toolbox import openapi

    if kinds[0] == "openapi":
        return [_ChangedSource(_build(openapi.OpenApi, entry["openapi"], "openapi", base=base), change)]
    return change([_build(openapi.endpoint, entry["http"], "http")])


def _build(what: Callable[..., Any], data: Any, label: str, **more: Any) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{label}: wanted a mapping, found {data!r}")
    known = [key for key in inspect.signature(what).parameters if key not in more]
    _known_keys(label, data, known)
    try:
        return what(**data, **more)
    except TypeError as err:
        raise ConfigError(f"{label}: {err}") from err


class _ChangedSource:
    """A source whose tools are renamed and limited as the entry says."""

    def __init__(self, source: ToolSource, change: Callable[[Iterable[Tool]], list[Tool]]) -> None:
        self._source, self._change = source, change

    async def open(self) -> list[Tool]:
        return self._change(await self._source.open())

    async def aclose(self) -> None:
        await self._source.aclose()


def _changed(tools: Iterable[Any], *, entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Any]:
    out = list(tools)
    names = [each.name for each in out if isinstance(each, Tool)]
    only, rename = entry.get("only"), dict(entry.get("rename") or {})
    for name in [*(only or ()), *rename]:
        if name not in names:
            raise UnknownNameError("tool", name, names)
    if only is not None:
        out = [each for each in out if isinstance(each, Tool) and each.name in only]
    return [_change_one(each, entry, rename, defaults) if isinstance(each, Tool) else each for each in out]


def _change_one(each: Tool, entry: Mapping[str, Any], rename: Mapping[str, str], defaults: Mapping[str, Any]) -> Tool:
    changes: dict[str, Any] = {}
    name = rename.get(each.name, f"{entry.get('prefix', '')}{each.name}")
    if name != each.name:
        changes["name"] = name
    standard = Limits()
    untouched = {
        each_field.name
        for each_field in fields(Limits)
        if getattr(each.limits, each_field.name) == getattr(standard, each_field.name)
    }
    limits = {**{key: value for key, value in defaults.items() if key in untouched}, **(entry.get("limits") or {})}
    if limits:
        changes["limits"] = limits
    if "isolation" in entry:
        changes["isolation"] = entry["isolation"]
    return each.replaced(**changes) if changes else each


def resolve_tools(
    where: str, *, base: Path | None = None, config: Mapping[str, Any] | None = None, state_name: str | None = None
) -> list[Any]:
    """Find the tools that a name stands for.

    Args:
        where: A ready-made name, `package.module`, `package.module:object`, or a Python file (`./tools.py[:object]`).
        base: Folder that a relative file path starts from.
        config: Keywords for a `StatefulTool` class or a function that returns tools.
        state_name: Name of the state of a `StatefulTool` class.

    Raises:
        ConfigError: If there is no such module or object.
        ToolDefinitionError: If it holds no tool.
    """
    config = dict(config or {})
    place, _, name = where.partition(":")
    module = _module(place, base or Path.cwd())
    if name:
        found = getattr(module, name, None)
        if found is None:
            raise ConfigError(f"{where}: module {module.__name__} has no {name!r}{nearest(name, vars(module))}")
        items = [found]
    else:
        items = _tools_of(module)
        if not items:
            raise ToolDefinitionError(f"{where}: no tool in this module; decorate a function with @tool")
    out: list[Any] = []
    for item in items:
        out += _expand(item, where, config, state_name, alone=len(items) == 1)
    return out


def _expand(item: Any, where: str, config: dict[str, Any], state_name: str | None, *, alone: bool) -> list[Any]:
    if isinstance(item, Tool):
        if (config or state_name) and alone:
            raise ConfigError(f"{where}: {item} is a function and takes neither config nor name")
        return [item]
    if isinstance(item, type) and issubclass(item, StatefulTool):
        return list(item.tools(name=state_name, **config))
    if callable(item):
        try:
            made = item(**config)
        except TypeError as err:
            raise ConfigError(f"{where}: cannot be called with config {config}: {err}") from err
        made = list(made) if isinstance(made, (list, tuple)) else [made]
        return [
            each
            for piece in made
            for each in (_expand(piece, where, {}, None, alone=False) if isinstance(piece, type) else [piece])
        ]
    if isinstance(item, (list, tuple)):
        return [each for piece in item for each in _expand(piece, where, config, state_name, alone=False)]
    raise ToolDefinitionError(
        f"{where}: {item!r} is no tool; wanted a @tool function, a StatefulTool class or a function"
    )


def _tools_of(module: ModuleType) -> list[Any]:
    """What a module offers: its list `TOOLS`, or the tools and classes that it defines itself."""
    listed = getattr(module, "TOOLS", None)
    if isinstance(listed, (list, tuple)):
        return list(listed)
    functions = [
        each for each in vars(module).values() if isinstance(each, Tool) and each.function.__module__ == module.__name__
    ]
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, StatefulTool) and each.__module__ == module.__name__
    ]
    return [*functions, *classes]


def _module(place: str, base: Path) -> ModuleType:
    known = ready_made()
    if place in known and known[place].suffix == ".py":
        place = f"{_READY_MADE}.{place}"
    if place.endswith(".py"):
        return _module_of_file((base / Path(place).expanduser()).resolve())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as err:
        if err.name is None or not (place == err.name or place.startswith(f"{err.name}.")):
            raise ConfigError(f"{place}: importing it failed: {err}") from err
        raise ConfigError(
            f"{place}: no such module or ready-made tool{nearest(place, known)}; ready-made: {', '.join(known)}"
        ) from err
    except (ImportError, SyntaxError, ValueError) as err:
        raise ConfigError(f"{place}: importing it failed: {type(err).__name__}: {err}") from err


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    name = f"_toolset_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ToolRLError:
        del sys.modules[name]
        raise
    except Exception as err:
        del sys.modules[name]
        raise ConfigError(f"{path}: running it failed: {type(err).__name__}: {err}") from err
    return module
