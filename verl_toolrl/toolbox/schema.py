"""Tool schemas that keep everything the author wrote.

A `ToolSchema` carries the JSON Schema of the arguments as it is: nesting, arrays, enums, unions, defaults, `$ref` and
keywords nobody has heard of. The model reads it word for word and the arguments are checked against it. (verl 0.9 keeps
type, description and enum of the first level only.)

Benchmarks and older data sets write types that JSON Schema does not know (`dict`, `float`, `tuple`, `any`, and Java's
and JavaScript's names in BFCL). They are kept for the model; `checkable` gives the same schema in standard words.
"""

from __future__ import annotations

import copy
import enum
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_toolrl.errors import ToolDefinitionError, nearest

__all__ = ["ToolSchema", "checkable", "schema_of_function"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}")
_EMPTY: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolSchema:
    """Name, description and parameters of one tool, as the model reads them."""

    name: str
    """Name that the model calls; letters, digits, `_`, `-`, `.`."""
    description: str
    """What the tool does, for the model."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_EMPTY))
    """JSON Schema of the arguments, an object at its root."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the function block (`strict`, BFCL's `response`), kept in the order found."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ToolDefinitionError(f"tool {self.name!r}: a name is letters, digits, '_', '-', '.', at most 128 long")
        if not isinstance(self.description, str) or not self.description.strip():
            raise ToolDefinitionError(f"tool {self.name!r}: no description; say in a sentence what it does")
        if not isinstance(self.parameters, Mapping):
            raise ToolDefinitionError(
                f"tool {self.name!r}: parameters must be a JSON Schema, found {type(self.parameters).__name__}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ToolSchema:
        """Read `{"type": "function", "function": {...}}` or the inner mapping alone.

        Raises:
            ToolDefinitionError: If the name, the description or the parameters are missing or have the wrong form.
        """
        block = data.get("function", data) if isinstance(data, Mapping) else data
        if not isinstance(block, Mapping) or "name" not in block:
            raise ToolDefinitionError(
                f"tool schema: wanted a mapping with name, description, parameters; found {data!r}"
            )
        return cls(
            name=block["name"],
            description=block.get("description") or "",
            parameters=copy.deepcopy(block.get("parameters") or dict(_EMPTY)),
            extra={key: copy.deepcopy(block[key]) for key in block if key not in ("name", "description", "parameters")},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the OpenAI form, nothing lost; a fresh copy each time."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
            **self.extra,
        }
        return {"type": "function", "function": copy.deepcopy(function)}


# What data sets write, and what JSON Schema calls it. None: any value.
_TYPE_ALIASES: Mapping[str, str | None] = {
    "dict": "object",
    "map": "object",
    "hashmap": "object",
    "hashtable": "object",
    "struct": "object",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "arraylist": "array",
    "queue": "array",
    "stack": "array",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "short": "integer",
    "byte": "integer",
    "bigint": "integer",
    "bool": "boolean",
    "str": "string",
    "char": "string",
    "any": None,
    "": None,
}
_STANDARD = ("string", "number", "integer", "boolean", "object", "array", "null")
_SUBSCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")


def checkable(schema: Any) -> Any:
    """Return a copy of a JSON Schema in which every type name is one of the standard's.

    A type name that is neither standard nor a known alias stays, so that compiling the schema reports it.
    """
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    if "type" in out:
        names = out.pop("type")
        mapped = [_standard_type(name) for name in (names if isinstance(names, list) else [names])]
        if None not in mapped:
            out["type"] = mapped if isinstance(names, list) else mapped[0]
    if not isinstance(out.get("required", []), list):
        del out["required"]  # draft 3 and data sets write a boolean at the property itself
    for key in _SUBSCHEMAS:
        if isinstance(out.get(key), Mapping):
            out[key] = checkable(out[key])
    for key in _SUBSCHEMA_LISTS:
        if isinstance(out.get(key), list):
            out[key] = [checkable(each) for each in out[key]]
    for key in _SUBSCHEMA_MAPS:
        if isinstance(out.get(key), Mapping):
            out[key] = {name: checkable(each) for name, each in out[key].items()}
    return out


def _standard_type(name: Any) -> Any:
    if not isinstance(name, str) or name in _STANDARD:
        return name
    lowered = name.strip().lower()
    return lowered if lowered in _STANDARD else _TYPE_ALIASES.get(lowered, name)


def schema_of_function(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    hidden: typing.Collection[str] = (),
) -> tuple[ToolSchema, dict[str, Any]]:
    """Build the schema of a typed, documented function.

    Types come from the annotations (anything pydantic can turn into JSON Schema: nested models, dataclasses, enums,
    unions, `Literal`, `Annotated[int, Field(ge=1)]`), texts from a Google-style docstring.

    Args:
        function: The function; its first parameter may be `self`.
        name: Name for the model instead of the function's own.
        description: Text instead of the docstring's.
        hidden: Parameters that the toolbox fills and the model must not see.

    Returns:
        The schema, and the annotation of each parameter whose JSON value must be turned into a Python object (a model,
        a dataclass, an enum, a date).

    Raises:
        ToolDefinitionError: If a parameter has no type or no JSON form, or there is no docstring.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    where = _where(function, name)
    summary, texts = _docstring(function)
    parameters = _parameters(function, where, hidden)
    description = description or summary
    if not description:
        raise ToolDefinitionError(f"{where}: no docstring; the model reads it to know what the tool does")
    for documented in texts:
        if documented not in parameters and documented not in hidden:
            hint = nearest(documented, parameters)
            raise ToolDefinitionError(f"{where}: the docstring describes {documented!r}, which is no parameter{hint}")

    annotations = _annotations(function, where, parameters)
    try:
        adapters = [(key, "validation", TypeAdapter(annotation)) for key, annotation in annotations.items()]
        schemas, shared = TypeAdapter.json_schemas(adapters, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as err:
        raise ToolDefinitionError(f"{where}: an annotation has no JSON Schema: {str(err).splitlines()[0]}") from err

    properties: dict[str, Any] = {}
    for key, parameter in parameters.items():
        entry = _without_titles(dict(schemas[(key, "validation")]))
        if key in texts:
            entry["description"] = texts[key]
        if parameter.default is not inspect.Parameter.empty:
            try:
                entry["default"] = to_jsonable_python(parameter.default)
            except PydanticSerializationError as err:
                raise ToolDefinitionError(f"{where}: the default of {key!r} has no JSON form: {err}") from err
        properties[key] = entry
    required = [key for key, each in parameters.items() if each.default is inspect.Parameter.empty]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if shared.get("$defs"):
        schema["$defs"] = {key: _without_titles(value) for key, value in shared["$defs"].items()}
    # Python refuses an unknown keyword argument, so the schema says it too.
    schema["additionalProperties"] = False
    converted = {key: annotation for key, annotation in annotations.items() if not _plain(annotation)}
    return ToolSchema(name or function.__name__, description, schema), converted


def _where(function: Callable[..., Any], name: str | None) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"tool {name or getattr(function, '__name__', repr(function))!r}{place}"


def _parameters(
    function: Callable[..., Any], where: str, hidden: typing.Collection[str]
) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for index, (key, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if (index == 0 and key == "self") or key in hidden:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolDefinitionError(f"{where}: parameter {str(parameter)!r}: give every parameter a name of its own")
        if parameter.annotation is parameter.empty:
            raise ToolDefinitionError(f"{where}: parameter {key!r} has no type; write for example `{key}: str`")
        found[key] = parameter
    return found


def _annotations(function: Callable[..., Any], where: str, names: typing.Iterable[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as err:
        raise ToolDefinitionError(f"{where}: an annotation cannot be resolved: {err}") from err
    return {key: hints[key] for key in names}


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into its text before the first section and the entries of `Args:`."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    heads = [
        i
        for i, line in enumerate(lines)
        if re.fullmatch(r"(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):", line)
    ]
    summary = "\n".join(lines[: heads[0]] if heads else lines).strip()
    summary = re.sub(r"(?<!\n)\n(?!\n)", " ", summary)
    texts: dict[str, str] = {}
    for position, head in enumerate(heads):
        if lines[head] not in ("Args:", "Arguments:", "Parameters:"):
            continue
        end = heads[position + 1] if position + 1 < len(heads) else len(lines)
        for entry in re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines[head + 1 : end])).strip("\n")):
            match = re.match(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", entry, re.DOTALL)
            if match:
                texts[match[1]] = " ".join(match[2].split())
    return summary, texts


def _without_titles(schema: Any) -> Any:
    """Drop the titles that pydantic makes up from names; they cost tokens and tell nothing."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in _SUBSCHEMA_MAPS and isinstance(value, dict):
            out[key] = {name: _without_titles(each) for name, each in value.items()}
        elif key in _SUBSCHEMAS or key in _SUBSCHEMA_LISTS:
            out[key] = _without_titles(value)
        else:
            out[key] = value
    return out


def _plain(annotation: Any) -> bool:
    """Whether a JSON value of the right schema already is what the function expects."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return False
    if annotation in (str, int, float, bool, None, type(None), Any, dict, list, object):
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain(args[0])
    if origin is typing.Literal:
        return not any(isinstance(each, enum.Enum) for each in args)
    return origin in _PLAIN_ORIGINS and all(_plain(each) for each in args)


_PLAIN_ORIGINS = (list, dict, typing.Union, getattr(__import__("types"), "UnionType", typing.Union))
