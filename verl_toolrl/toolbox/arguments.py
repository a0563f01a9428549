"""Arguments of a call: checked against the schema, coerced where only one reading is possible, or refused in words.

Checking is `jsonschema-rs` on a validator that is compiled once a tool. What a model writes never raises here: the
answer is either arguments that satisfy the schema or a text that the model can act on.

Coerced are the slips of models that leave no doubt: `"5"` or `5.0` for an integer, `"2.5"` for a number, `"true"` for a
boolean, a number for a string, a JSON text for an array or object, and `null` for an optional parameter (left out).
Nothing is guessed: no case folding of enums, no scalar wrapped into a list, no unknown name dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from verl_toolrl.errors import ToolDefinitionError, nearest
from verl_toolrl.toolbox.outcomes import ModelMistake
from verl_toolrl.toolbox.schema import ToolSchema, checkable

__all__ = ["ArgumentChecker", "compile_schema"]

_INTEGER = re.compile(r"[+-]?\d{1,18}")
_MAX_ERRORS = 4
_MAX_SHOWN = 80


def compile_schema(schema: Mapping[str, Any], where: str) -> Any:
    """Compile a JSON Schema.

    Raises:
        ToolDefinitionError: If it is no valid schema, or refers to a document outside itself; nothing is fetched.
    """
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(checkable(schema), retriever=_no_retrieval)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as err:
        path = "/".join(str(part) for part in getattr(err, "instance_path", ()) or ())
        reason = getattr(err, "message", None) or str(err)
        raise ToolDefinitionError(f"{where}: invalid JSON Schema{f' at {path}' if path else ''}: {reason}") from err


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"$ref to {uri}: only references inside the schema (#/...) are followed")


class ArgumentChecker:
    """Checks the arguments of one tool.

    Args:
        schema: The tool's schema; its parameters must describe an object.
        converted: Annotation of each parameter whose JSON value becomes a Python object (see `schema_of_function`).
        coerce: Whether to repair slips; without it arguments must fit as they are.

    Raises:
        ToolDefinitionError: If the schema is invalid or its root is no object.
    """

    def __init__(self, schema: ToolSchema, *, converted: Mapping[str, Any] | None = None, coerce: bool = True) -> None:
        self._name, self._coerce = schema.name, coerce
        self._schema: dict[str, Any] = checkable(schema.parameters)
        root = self._schema.get("type", "object")
        if root != "object":
            raise ToolDefinitionError(
                f"tool {schema.name!r}: parameters must be of type object at the root, found {root!r}"
            )
        self._validator = compile_schema(self._schema, f"tool {schema.name!r}")
        properties = self._schema.get("properties") or {}
        # JSON Schema counts 5.0 as an integer, Python's `range` does not.
        self._integers = tuple(key for key, each in properties.items() if _is_integer(each))
        self._deep_integers = any(_holds_integer(each, self._schema) for each in properties.values())
        self._adapters = _adapters(converted or {})

    def check(self, arguments: Any) -> dict[str, Any]:
        """Return arguments that satisfy the schema.

        Raises:
            ModelMistake: If they do not and cannot be coerced; the text names each argument, what was found and wanted.
        """
        if type(arguments) is not dict:
            if not isinstance(arguments, Mapping):
                raise ModelMistake(f"Arguments of {self._name} must be a JSON object, found {_show(arguments)}.")
            arguments = dict(arguments)
        valid = self._is_valid(arguments)
        if valid and not self._adapters:
            if self._deep_integers:
                return self._repaired(arguments)
            for key in self._integers:
                if type(arguments.get(key)) is float:
                    return self._repaired(arguments)
            return arguments
        if not valid:
            repaired = self._repaired(arguments) if self._coerce else arguments
            if not self._is_valid(repaired):
                raise ModelMistake(self._explain(repaired))
            arguments = repaired
        return self._convert(arguments) if self._adapters else arguments

    def _is_valid(self, arguments: dict[str, Any]) -> bool:
        try:
            return bool(self._validator.is_valid(arguments))
        except (ValueError, TypeError, RecursionError, OverflowError):  # not JSON: a set, a non-string key, a surrogate
            return False

    def _repaired(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with all slips repaired that can be; they may still be invalid."""
        try:
            return _coerce(arguments, self._schema, self._schema, 0)
        except (ValueError, TypeError, RecursionError, OverflowError):
            return arguments

    def _convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        from pydantic import ValidationError

        out = dict(arguments)
        for key, adapter in self._adapters.items():
            if key in out:
                try:
                    out[key] = adapter.validate_python(out[key])
                except ValidationError as err:
                    first = err.errors(include_url=False)[0]
                    place = ".".join([key, *(str(part) for part in first["loc"])])
                    raise ModelMistake(f"Invalid arguments for {self._name}: {place}: {first['msg']}.") from err
        return out

    def _explain(self, arguments: dict[str, Any]) -> str:
        problems: list[str] = []
        try:
            for error in self._validator.iter_errors(arguments):
                if len(problems) == _MAX_ERRORS:
                    problems.append("and more")
                    break
                problems.append(self._problem(error, arguments))
        except (ValueError, TypeError, RecursionError, OverflowError):
            problems.append("they are not plain JSON values")
        return f"Invalid arguments for {self._name}: {'; '.join(dict.fromkeys(problems))}. {self._signature()}"

    def _problem(self, error: Any, arguments: dict[str, Any]) -> str:
        place = ".".join(str(part) for part in error.instance_path)
        kind = type(error.kind).__name__
        if kind.endswith("Required"):
            return f"{_join(place, error.kind.property)} is required and missing"
        if kind.endswith("AdditionalProperties"):
            known = list((self._schema.get("properties") or {}) if not place else ())
            return "; ".join(
                f"{_join(place, key)} is no parameter{nearest(key, known)}" for key in error.kind.unexpected[:3]
            )
        return f"{place or 'the arguments'}: {_shorten(error.message)}"

    def _signature(self) -> str:
        required = set(self._schema.get("required") or ())
        parts = [
            f"{key}{'' if key in required else '?'}: {_type_name(each)}"
            for key, each in list((self._schema.get("properties") or {}).items())[:20]
        ]
        return f"Expected {{{', '.join(parts)}}}." if parts else "It takes no arguments."


def _adapters(converted: Mapping[str, Any]) -> dict[str, Any]:
    if not converted:
        return {}
    from pydantic import TypeAdapter

    return {key: TypeAdapter(annotation) for key, annotation in converted.items()}


def _resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow local references, at most eight in a row."""
    for _ in range(8):
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(ref, str) or not ref.startswith("#"):
            break
        target: Any = root
        for part in ref[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, Mapping) else None
        schema = target
    return schema if isinstance(schema, Mapping) else {}


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    names = schema.get("type")
    return tuple(names) if isinstance(names, list) else (names,) if isinstance(names, str) else ()


def _is_integer(schema: Any) -> bool:
    return isinstance(schema, Mapping) and "integer" in _types(schema) and "number" not in _types(schema)


def _holds_integer(schema: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether an integer may stand below the first level, where only the full walk finds a 5.0."""
    if depth > 6:
        return True
    schema = _resolve(schema, root)
    inner = [*(schema.get("properties") or {}).values(), schema.get("items"), *(schema.get("prefixItems") or ())]
    inner += [each for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key) or ()]
    return any(_is_integer(_resolve(each, root)) or _holds_integer(each, root, depth + 1) for each in inner if each)


def _coerce(value: Any, schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    """Return `value` as the schema wants it, or unchanged where no single reading exists."""
    schema = _resolve(schema, root)
    if depth > 64 or not schema:
        return value
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _coerce_union(value, schema[key], root, depth)
    for each in schema.get("allOf") or ():
        value = _coerce(value, each, root, depth + 1)
    types = _types(schema)
    if types and not any(_has_type(value, each) for each in types):
        value = next((new for new in (_as_type(value, each) for each in types) if new is not value), value)
    elif type(value) is float and "integer" in types and "number" not in types:
        value = int(value)
    if isinstance(value, dict):
        return _coerce_object(value, schema, root, depth)
    if isinstance(value, list):
        prefix, rest = schema.get("prefixItems") or (), schema.get("items")
        return [
            _coerce(each, prefix[i] if i < len(prefix) else rest, root, depth + 1) if i < len(prefix) or rest else each
            for i, each in enumerate(value)
        ]
    return value


def _coerce_union(value: Any, branches: Any, root: Mapping[str, Any], depth: int) -> Any:
    resolved = [_resolve(each, root) for each in branches]
    for branch in resolved:
        if any(_has_type(value, each) for each in _types(branch)):
            return _coerce(value, branch, root, depth + 1)
    for branch in resolved:
        new = _coerce(value, branch, root, depth + 1)
        if new is not value:
            return new
    return value


def _coerce_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    rest = schema.get("additionalProperties")
    out: dict[str, Any] = {}
    for key, each in value.items():
        inner = properties.get(key, rest if isinstance(rest, Mapping) else None)
        if inner is None:
            out[key] = each
        elif each is None and key not in required and not _allows_null(inner, root):
            continue
        else:
            out[key] = _coerce(each, inner, root, depth + 1)
    return out


def _allows_null(schema: Any, root: Mapping[str, Any]) -> bool:
    schema = _resolve(schema, root)
    if not schema or "null" in _types(schema) or (schema.get("enum") and None in schema["enum"]):
        return True
    unions = [each for key in ("anyOf", "oneOf") for each in schema.get(key) or ()]
    return any(_allows_null(each, root) for each in unions) if unions else not _types(schema) and "enum" not in schema


def _has_type(value: Any, name: str) -> bool:
    if name == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds: dict[str, type] = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    return name in kinds and isinstance(value, kinds[name])


def _as_type(value: Any, name: str) -> Any:
    """Read `value` as `name`; the very same object means that it cannot be."""
    if name == "string":
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return json.dumps(value) if plain else value
    if not isinstance(value, str):
        return value
    text = value.strip()
    if name == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if name in ("number", "integer"):
        try:
            number = float(text)
        except ValueError:
            return value
        if "_" in text or not math.isfinite(number) or (name == "integer" and not number.is_integer()):
            return value
        return (
            int(text) if name == "number" and _INTEGER.fullmatch(text) else int(number) if name == "integer" else number
        )
    if name == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if (name == "array" and text[:1] == "[") or (name == "object" and text[:1] == "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return value
    return value


def _type_name(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("enum"), list):
        return _shorten("|".join(json.dumps(each, ensure_ascii=False) for each in schema["enum"]))
    unions = [each for key in ("anyOf", "oneOf") for each in schema.get(key) or ()]
    return "|".join(_types(schema)) or "|".join(dict.fromkeys(_type_name(each) for each in unions)) or "any"


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else str(key)


def _show(value: Any) -> str:
    try:
        return _shorten(json.dumps(value, ensure_ascii=False, default=lambda each: type(each).__name__))
    except (ValueError, TypeError, RecursionError):
        return type(value).__name__


def _shorten(text: str, limit: int = 2 * _MAX_SHOWN) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
