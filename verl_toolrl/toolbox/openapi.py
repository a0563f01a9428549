"""Tools that are HTTP endpoints: one by one (`endpoint`), or all operations of an OpenAPI 3 document (`OpenApi`).

The arguments are those that the document describes: path, query and header parameters by name, and the properties of a
JSON request body (or `body`, where it is no object or a name would clash). References keep working: the schemas of the
document come along under `$defs`.

An answer becomes an outcome: 2xx is ok, 400 and 422 are the model's mistake, other 4xx the tool's own error, and 401,
403, 407, 408, 429 and 5xx infrastructure (a key that is wrong, a server that is full).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from verl_toolrl.errors import ConfigError, InfrastructureError, ToolDefinitionError
from verl_toolrl.toolbox.outcomes import ModelMistake, ToolError, describe
from verl_toolrl.toolbox.schema import ToolSchema
from verl_toolrl.toolbox.tool import Isolation, Tool

__all__ = ["OpenApi", "endpoint"]

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_INFRA_STATUS = (401, 403, 407, 408, 429)
_MAX_BYTES = 4 << 20
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def endpoint(
    *,
    name: str,
    url: str,
    description: str,
    parameters: Mapping[str, Any] | None = None,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> Tool:
    """Make a tool of one HTTP endpoint.

    Args:
        name: Name for the model.
        url: Address; `{name}` stands for an argument. Arguments that are not in it go into the query of GET, HEAD and
            DELETE and into a JSON body otherwise.
        description: Text for the model.
        parameters: JSON Schema of the arguments.
        method: HTTP method.
        headers: Sent with each request.

    Raises:
        ToolDefinitionError: If the method is unknown, or the URL names an argument that the schema does not have.
    """
    schema = dict(parameters or {"type": "object", "properties": {}})
    if method.lower() not in _METHODS:
        raise ToolDefinitionError(f"tool {name!r}: method must be one of {', '.join(_METHODS)}, found {method!r}")
    if not url.startswith(("http://", "https://")):
        raise ToolDefinitionError(f"tool {name!r}: url must begin with http:// or https://, found {url!r}")
    in_path = _PLACEHOLDER.findall(url)
    known = schema.get("properties") or {}
    for key in in_path:
        if key not in known or key not in (schema.get("required") or ()):
            raise ToolDefinitionError(f"tool {name!r}: the url names {key!r}, which must be a required parameter")
    in_query = method.lower() in ("get", "head", "delete", "options")
    places = {key: "path" if key in in_path else "query" if in_query else "body" for key in known}
    client = _Client()

    async def call(**arguments: Any) -> str:
        return await client.request(
            method.upper(), url, places, arguments, headers or {}, default="query" if in_query else "body"
        )

    return Tool(ToolSchema(name, description, schema), call, Isolation.INLINE, source=url, shutdown=client.aclose)


class OpenApi:
    """All operations of an OpenAPI 3 document; a source of tools for `Toolbox`.

    Args:
        spec: Path or URL of the document, JSON or YAML.
        base_url: Address of the server; the document's first server by default.
        headers: Sent with each request (authorization).
        operations: Only these, by `operationId`.
        base: Folder that a relative path starts from.
    """

    def __init__(
        self,
        spec: str,
        *,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        operations: Sequence[str] | None = None,
        base: Path | None = None,
    ) -> None:
        self._spec, self._base_url, self._headers = spec, base_url, dict(headers or {})
        self._only, self._base = operations, base or Path.cwd()
        self._client = _Client()

    async def open(self) -> list[Tool]:
        """Read the document and return its tools.

        Raises:
            ConfigError: If there is none at its place, or it is no OpenAPI 3 document.
            InfrastructureError: If the server that has it cannot be reached.
        """
        document = _parse(await self._read(), self._spec)
        url = self._base_url or next(iter(document.get("servers") or [{}])).get("url", "")
        if not str(url).startswith(("http://", "https://")):
            raise ConfigError(f"openapi {self._spec}: no server address; give base_url")
        tools = []
        for path, item in document["paths"].items():
            shared = item.get("parameters") or []
            for method in _METHODS:
                if isinstance(item.get(method), Mapping):
                    tools.append(self._tool(document, str(url).rstrip("/") + path, method, item[method], shared))
        names = [each.name for each in tools]
        for wanted in self._only or ():
            if wanted not in names:
                raise ConfigError(f"openapi {self._spec}: no operation {wanted!r}; known: {', '.join(names)}")
        return [each for each in tools if self._only is None or each.name in self._only]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _read(self) -> str:
        if not self._spec.startswith(("http://", "https://")):
            path = self._base / self._spec
            if not path.is_file():
                raise ConfigError(f"openapi: no such file {path}")
            return path.read_text(encoding="utf-8")
        import httpx

        try:
            return await self._client.request("GET", self._spec, {}, {}, self._headers)
        except (ToolError, ModelMistake, httpx.InvalidURL) as err:  # the address is wrong, not away
            raise ConfigError(f"openapi {self._spec}: cannot be fetched: {err}") from err
        except Exception as err:
            raise InfrastructureError(f"openapi {self._spec}: cannot be fetched: {describe(err)}") from err

    def _tool(
        self, document: Mapping[str, Any], url: str, method: str, operation: Mapping[str, Any], shared: Sequence[Any]
    ) -> Tool:
        name = operation.get("operationId") or re.sub(
            r"\W+", "_", f"{method}_{url.split('://', 1)[1].partition('/')[2]}"
        ).strip("_")
        properties: dict[str, Any] = {}
        places: dict[str, str] = {}
        required: list[str] = []
        for raw in [*shared, *(operation.get("parameters") or ())]:
            parameter = _deref(document, raw)
            key, place = parameter["name"], parameter["in"]
            if place == "cookie":
                continue
            text = {"description": parameter["description"]} if parameter.get("description") else {}
            properties[key] = {**(parameter.get("schema") or {"type": "string"}), **text}
            places[key] = place
            if (parameter.get("required") or place == "path") and key not in required:
                required.append(key)
        whole_body = self._add_body(document, operation, properties, places, required)
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        schema["additionalProperties"] = False
        used = _reachable(document, properties)
        if used:
            schema["$defs"] = {key: _relocated(value) for key, value in used.items()}
            schema["properties"] = _relocated(properties)
        client, headers = self._client, self._headers

        async def call(**arguments: Any) -> str:
            return await client.request(method.upper(), url, places, arguments, headers, whole_body=whole_body)

        description = operation.get("summary") or operation.get("description") or f"{method.upper()} {url}"
        if operation.get("summary") and operation.get("description"):
            description = f"{operation['summary']}. {operation['description']}"
        return Tool(ToolSchema(name, description, schema), call, Isolation.INLINE, source=f"openapi {self._spec}")

    def _add_body(
        self,
        document: Mapping[str, Any],
        operation: Mapping[str, Any],
        properties: dict[str, Any],
        places: dict[str, str],
        required: list[str],
    ) -> bool:
        """Add the request body's arguments; True where it is one argument named `body`."""
        body = _deref(document, operation.get("requestBody") or {})
        schema = ((body.get("content") or {}).get("application/json") or {}).get("schema")
        if schema is None:
            return False
        inner = _deref(document, schema)
        fields = inner.get("properties")
        plain = isinstance(fields, Mapping) and not any(key in inner for key in ("anyOf", "oneOf", "allOf"))
        if plain and not set(fields) & set(properties):  # type: ignore[arg-type]
            properties.update(fields)  # type: ignore[arg-type]
            places.update(dict.fromkeys(fields, "body"))  # type: ignore[arg-type]
            if body.get("required"):
                required.extend(inner.get("required") or ())
            return False
        properties["body"], places["body"] = schema, "body"
        if body.get("required"):
            required.append("body")
        return True


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"openapi {where}: neither JSON nor YAML: {err}") from err
    if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith("3"):
        raise ConfigError(f"openapi {where}: no OpenAPI 3 document (no 'openapi: 3...')")
    if not isinstance(document.get("paths"), dict):
        raise ConfigError(f"openapi {where}: no paths")
    return document


def _deref(document: Mapping[str, Any], item: Any) -> Mapping[str, Any]:
    for _ in range(8):
        if not (isinstance(item, Mapping) and isinstance(item.get("$ref"), str)):
            break
        target: Any = document
        for part in item["$ref"].removeprefix("#/").split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        if target is None:
            raise ConfigError(f"openapi: {item['$ref']} points nowhere")
        item = target
    return item if isinstance(item, Mapping) else {}


_SCHEMA_REF = "#/components/schemas/"


def _references(item: Any) -> set[str]:
    if isinstance(item, Mapping):
        own = item.get("$ref")
        found = {own.removeprefix(_SCHEMA_REF)} if isinstance(own, str) and own.startswith(_SCHEMA_REF) else set()
        return found.union(*(_references(each) for each in item.values()))
    return set().union(*(_references(each) for each in item)) if isinstance(item, list) else set()


def _reachable(document: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the component schemas that the arguments need, directly or through one another."""
    known = (document.get("components") or {}).get("schemas") or {}
    waiting, found = _references(properties), {}
    while waiting:
        name = waiting.pop()
        if name not in found:
            if name not in known:
                raise ConfigError(f"openapi: {_SCHEMA_REF}{name} points nowhere")
            found[name] = known[name]
            waiting |= _references(known[name])
    return found


def _relocated(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {
            key: value.replace(_SCHEMA_REF, "#/$defs/")
            if key == "$ref" and isinstance(value, str)
            else _relocated(value)
            for key, value in item.items()
        }
    return [_relocated(each) for each in item] if isinstance(item, list) else item


class _Client:
    """An HTTP client that is made on first use and belongs to one event loop at a time."""

    def __init__(self) -> None:
        self._http: Any = None
        self._loop: Any = None

    async def request(
        self,
        method: str,
        url: str,
        places: Mapping[str, str],
        arguments: Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        default: str = "query",
        whole_body: bool = False,
    ) -> str:
        """Send one request and return the text of its answer, or raise what its status means."""
        import asyncio

        import httpx

        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._http, self._loop = httpx.AsyncClient(timeout=None, limits=limits), loop
        query, body, sent = {}, {}, dict(headers)
        for key, value in arguments.items():
            place = places.get(key, default)
            if place == "path":
                url = url.replace("{" + key + "}", quote(_plain(value), safe=""))
            elif place == "header":
                sent[key] = _plain(value)
            elif place == "body":
                body[key] = value
            else:
                query[key] = [_plain(each) for each in value] if isinstance(value, list) else _plain(value)
        content: Any = (body.get("body") if whole_body else body) if body else None
        async with self._http.stream(method, url, params=query or None, json=content, headers=sent) as response:
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > _MAX_BYTES:
                    break
        text = bytes(data[:_MAX_BYTES]).decode(response.encoding or "utf-8", errors="replace")
        return _answer(response.status_code, text)

    async def aclose(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


def _answer(status: int, text: str) -> str:
    if status < 300:
        return text
    if status in _INFRA_STATUS or status >= 500 or status < 400:
        raise InfrastructureError(f"the server answered {status}: {text[:200]}")
    if status in (400, 422):
        raise ModelMistake(f"The server refused the arguments ({status}): {text[:1000]}")
    raise ToolError(f"The server answered {status}: {text[:1000]}")
