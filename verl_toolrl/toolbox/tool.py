"""What a tool is, and the two ways to write one: a decorated function, or a class whose methods share a state.

    @tool(domain="math")
    async def add(a: int, b: int) -> int:
        '''Add two numbers.

        Args:
            a: First number.
            b: Second number.
        '''
        return a + b

    class Counter(StatefulTool):            # one instance a trajectory, released at its end
        def __init__(self, start: int = 0) -> None:
            self.value = start

        @tool
        def increase(self, by: int) -> int:
            '''Increase the counter and return it.'''
            self.value += by
            return self.value

A decorated function stays callable, so that it can be tested by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, TypeVar, overload

from verl_toolrl.errors import ConfigError, ToolDefinitionError, nearest
from verl_toolrl.toolbox.arguments import ArgumentChecker, compile_schema
from verl_toolrl.toolbox.limits import Limits
from verl_toolrl.toolbox.schema import ToolSchema, schema_of_function

__all__ = ["Isolation", "StateSpec", "StatefulTool", "Tool", "ToolContext", "tool"]


class Isolation(str, Enum):
    """Where a tool runs, and therefore what can be promised of it."""

    INLINE = "inline"
    """In the event loop. Fastest; a sync function cannot be stopped, and whatever blocks is named by the watchdog."""
    THREAD = "thread"
    """In a thread. The loop goes on; a hanging thread is given up, not killed, and the machine keeps it."""
    PROCESS = "process"
    """In a worker process that is killed on time-out and has a memory limit. Costs about 0.2 ms a call."""


@dataclass(frozen=True)
class ToolContext:
    """What an inline or thread tool may know of the trajectory; ask for it with a parameter annotated `ToolContext`."""

    trajectory_id: str
    """Identifier of the session."""
    extra: Mapping[str, Any]
    """Whatever the rollout handed to `Toolbox.session(extra=...)`."""


@dataclass(frozen=True)
class StateSpec:
    """Which class holds the state of a trajectory, and how it is made."""

    name: str
    """Name under which a session gives initial state and shows the instance; the class name by default."""
    factory: Callable[..., Any]
    """Called with the keywords of `config`, then those of the session."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keywords that a tool set fixes for all trajectories."""

    def make(self, state: Mapping[str, Any]) -> Any:
        """Build the instance of one trajectory."""
        return self.factory(**{**self.config, **state})


@dataclass(frozen=True)
class Tool:
    """One tool: what the model reads, what is run, and under which limits."""

    schema: ToolSchema
    """What the model reads and the arguments are checked against."""
    function: Callable[..., Any]
    """What is run, with the arguments as keywords (after the state instance, where there is one)."""
    isolation: Isolation
    """Where it runs."""
    limits: Limits = field(default_factory=Limits)
    """What it may take."""
    domain: str = ""
    """Subject, for data generation and display."""
    deterministic: bool = False
    """Whether the same state and arguments give the same answer, always."""
    ends_trajectory: bool = False
    """Whether a successful call is the last of its trajectory."""
    arguments_cause_timeout: bool = False
    """Whether a time-out is the model's doing (it wrote the program or query that runs)."""
    infrastructure_errors: tuple[type[BaseException], ...] = ()
    """Further exception classes that are failures of infrastructure."""
    returns: Mapping[str, Any] | None = None
    """JSON Schema of the answer; one that breaks it is the tool's own error."""
    state: StateSpec | None = None
    """Where a state belongs to it: how to make one."""
    coerce: bool = True
    """Whether slips in arguments are repaired (see `arguments`)."""
    wants_context: str | None = None
    """Name of the parameter that receives the `ToolContext`."""
    converted: Mapping[str, Any] = field(default_factory=dict)
    """Annotation of each parameter that becomes a Python object."""
    source: str = ""
    """Where it comes from, for display: a module, an MCP server, a URL."""
    startup: Callable[[], Any] | None = None
    """Called (awaited if async) when the toolbox opens; raises where the machine gives no means to run the tool."""
    shutdown: Callable[[], Any] | None = None
    """Called (awaited if async) when the toolbox closes."""

    # Worked out once, because every call reads them.
    is_async: bool = field(init=False, repr=False, compare=False, default=False)
    check: Callable[[Any], dict[str, Any]] = field(init=False, repr=False, compare=False, default=dict)
    """Validates and repairs arguments; raises `ModelMistake`."""
    check_result: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        is_async = inspect.iscoroutinefunction(self.function)
        if self.isolation is not Isolation.INLINE and is_async:
            raise ToolDefinitionError(
                f"{self}: an async function runs inline; write it with def for {self.isolation.value}"
            )
        if self.limits.memory_mb is not None and self.isolation is not Isolation.PROCESS:
            raise ToolDefinitionError(f"{self}: memory_mb needs isolation 'process', found {self.isolation.value!r}")
        if self.isolation is Isolation.PROCESS and self.wants_context:
            raise ToolDefinitionError(f"{self}: a tool in a process of its own cannot take a ToolContext")
        object.__setattr__(self, "is_async", is_async)
        checker = ArgumentChecker(self.schema, converted=self.converted, coerce=self.coerce)
        object.__setattr__(self, "check", checker.check)
        object.__setattr__(
            self, "check_result", compile_schema(self.returns, f"{self} returns") if self.returns is not None else None
        )

    @property
    def name(self) -> str:
        """Name that the model calls."""
        return self.schema.name

    def __str__(self) -> str:
        return f"tool {self.name!r}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the bare function: no validation, no limits."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.function.__get__(instance, owner)

    def replaced(self, **changes: Any) -> Tool:
        """Return a copy with some fields changed; `name` renames it, `limits` may be a mapping of single limits.

        Raises:
            ToolDefinitionError: If a field is unknown or its value makes no sense.
        """
        if "name" in changes:
            changes["schema"] = dataclasses.replace(changes.get("schema", self.schema), name=changes.pop("name"))
        if "description" in changes:
            changes["schema"] = dataclasses.replace(
                changes.get("schema", self.schema), description=changes.pop("description")
            )
        known = [each.name for each in dataclasses.fields(self) if each.init]
        for key in changes:
            if key not in known:
                raise ToolDefinitionError(
                    f"{self}: unknown field {key!r}{nearest(key, known)}; known: {', '.join(known)}"
                )
        if isinstance(changes.get("limits"), Mapping):
            changes["limits"] = _as_definition(self, lambda: self.limits.replaced(changes["limits"]))
        if "isolation" in changes:
            changes["isolation"] = _isolation(self, changes["isolation"])
        return dataclasses.replace(self, **changes)


def _as_definition(where: object, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ConfigError as err:
        raise ToolDefinitionError(f"{where}: {err}") from err


def _isolation(where: object, value: Any) -> Isolation:
    try:
        return Isolation(value)
    except ValueError as err:
        names = [each.value for each in Isolation]
        raise ToolDefinitionError(
            f"{where}: isolation must be one of {', '.join(names)}, found {value!r}{nearest(value, names)}"
        ) from err


_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def tool(function: _F) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    isolation: str | Isolation | None = None,
    limits: Limits | Mapping[str, Any] | None = None,
    domain: str = "",
    deterministic: bool = False,
    ends_trajectory: bool = False,
    arguments_cause_timeout: bool = False,
    infrastructure_errors: tuple[type[BaseException], ...] = (),
    returns: Mapping[str, Any] | None = None,
    schema: ToolSchema | Mapping[str, Any] | None = None,
    coerce: bool = True,
    startup: Callable[[], Any] | None = None,
) -> Callable[[_F], Tool]: ...
def tool(function: Any = None, **options: Any) -> Any:
    """Make a tool of a function (sync or async) or of a method of a `StatefulTool`.

    Args:
        function: Typed and documented. Async functions run inline; sync ones in a thread unless `isolation` says else.
        **options: Fields of `Tool`; `name` and `description` override function name and docstring, `schema` replaces
            the schema read from the signature, `limits` takes a `Limits` or single limits as a mapping.

    Raises:
        ToolDefinitionError: If a parameter has no type, there is no docstring, or an option makes no sense.
    """
    if function is not None:
        return _build(function, {})
    return lambda inner: _build(inner, dict(options))


def _build(function: Callable[..., Any], options: dict[str, Any]) -> Tool:
    if isinstance(function, Tool):
        raise ToolDefinitionError(f"{function} is decorated twice")
    if not inspect.isfunction(function):
        raise ToolDefinitionError(
            f"@tool wants a function, found {function!r}; a class with state derives from StatefulTool"
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ToolDefinitionError(f"tool {function.__name__!r} is a generator; return the whole answer instead")
    where = f"tool {options.get('name') or function.__name__!r}"
    context = _context_parameter(function)
    given = options.pop("schema", None)
    converted: Mapping[str, Any] = {}
    if given is None:
        hidden = (context,) if context else ()
        schema, converted = schema_of_function(
            function, name=options.pop("name", None), description=options.pop("description", None), hidden=hidden
        )
    else:
        schema = given if isinstance(given, ToolSchema) else ToolSchema.from_dict({"name": function.__name__, **given})
    is_async = inspect.iscoroutinefunction(function)
    default = Isolation.INLINE if is_async else Isolation.THREAD
    limits = options.pop("limits", None) or Limits()
    isolation = options.pop("isolation", None)
    built = Tool(
        schema=schema,
        function=function,
        isolation=default if isolation is None else _isolation(where, isolation),
        limits=_as_definition(where, lambda: Limits().replaced(limits)) if isinstance(limits, Mapping) else limits,
        converted=converted,
        wants_context=context,
        # A tool set loads files under made-up module names; whoever looks wants the file.
        source=function.__code__.co_filename if function.__module__.startswith("_toolset_") else function.__module__,
    )
    return built.replaced(**options) if options else built


def _context_parameter(function: Callable[..., Any]) -> str | None:
    for key, annotation in getattr(function, "__annotations__", {}).items():
        if annotation is ToolContext or (isinstance(annotation, str) and annotation.split(".")[-1] == "ToolContext"):
            return key
    return None


class StatefulTool:
    """Base of a class whose decorated methods are tools that share one state: one instance a trajectory.

    Calls on one instance run one after the other, in the order of the model's calls. `__init__` gets the initial state
    as keywords. `close` (sync or async) is called when the trajectory ends, whatever happened. `snapshot` may return a
    JSON-like picture of the state, for rewards that check it. Whatever calls were made, it must not raise: what it
    raises is the author's mistake, or a failure of infrastructure where a call that raises the same would be one.
    """

    def close(self) -> Any:
        """Release what the instance holds; nothing by default."""

    def snapshot(self) -> Any:
        """Return the state as JSON-like values; None by default."""
        return None

    startup: ClassVar[Callable[..., Any] | None] = None
    """A class method that is called with the tool set's config when the toolbox opens, and awaited if async. It raises
    a `ConfigError` where the class cannot work on this machine or with this config."""

    @classmethod
    def tools(cls, *, name: str | None = None, **config: Any) -> list[Tool]:
        """Return the tools of this class.

        Args:
            name: Name of the state in a session, instead of the class name; needed to use one class twice.
            **config: Keywords for `__init__` that hold for all trajectories.

        Raises:
            ToolDefinitionError: If no method is decorated, or `__init__` does not take a keyword of `config`.
        """
        found = [value for key in dir(cls) if isinstance(value := inspect.getattr_static(cls, key), Tool)]
        if not found:
            raise ToolDefinitionError(f"{cls.__module__}.{cls.__qualname__}: no method is decorated with @tool")
        _check_keywords(cls, config)
        spec = StateSpec(name or cls.__name__, cls, config)
        order = list(vars(cls)).index
        found.sort(key=lambda each: order(each.function.__name__) if each.function.__name__ in vars(cls) else 0)
        startup = functools.partial(cls.startup, **config) if cls.startup is not None else None
        return [each.replaced(state=spec, startup=each.startup or startup) for each in found]


def _check_keywords(cls: type, config: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for key in config:
        if key not in parameters:
            raise ToolDefinitionError(
                f"{cls.__module__}.{cls.__qualname__}: config has no {key!r}{nearest(key, parameters)}; "
                f"known: {', '.join(parameters) or 'none'}"
            )
