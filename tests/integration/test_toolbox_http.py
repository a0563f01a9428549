"""Tools over real HTTP: endpoints, OpenAPI documents, and pages behind an allow-list."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from verl_toolrl.errors import AuthorError, InfrastructureError
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import Outcome, ToolCall, ToolResult


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length).decode()
        status, kind, text = 200, "text/plain; charset=utf-8", "héllo"
        extra = {}
        if parts.path.startswith("/status/"):
            status = int(parts.path.split("/")[2])
        elif parts.path == "/redirect":
            status, extra = 302, {"location": parse_qs(parts.query)["to"][0]}
        elif parts.path == "/image":
            kind = "image/png"
        elif parts.path == "/large":
            text = "x" * (3 << 20)
        elif parts.path.startswith("/pets"):
            kind = "application/json"
            seen = {"method": self.command, "path": parts.path, "query": parse_qs(parts.query), "body": body}
            text = json.dumps({**seen, "key": self.headers.get("x-key"), "trace": self.headers.get("x-trace")})
        elif parts.path == "/openapi.json":
            kind, text = "application/json", json.dumps(_DOCUMENT)
        data = text.encode()
        self.send_response(status)
        for key, value in {"content-type": kind, "content-length": str(len(data)), **extra}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


_PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"$ref": "#/components/schemas/Tag"}},
        "mother": {"$ref": "#/components/schemas/Pet"},
    },
    "required": ["name"],
}
_DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Pets", "version": "1"},
    "paths": {
        "/pets/{pet_id}": {
            "parameters": [{"name": "pet_id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {
                "operationId": "get_pet",
                "summary": "Get a pet",
                "parameters": [
                    {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "x-trace", "in": "header", "schema": {"type": "string"}},
                ],
            },
        },
        "/pets": {
            "post": {
                "operationId": "add_pet",
                "description": "Add a pet.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            }
        },
        "/status/{code}": {
            "get": {"parameters": [{"name": "code", "in": "path", "required": True, "schema": {"type": "integer"}}]}
        },
    },
    "components": {"schemas": {"Pet": _PET, "Tag": {"enum": ["cat", "dog"]}, "Unused": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def ask(folder: Path, text: str, *calls: ToolCall) -> list[ToolResult]:
    (folder / "set.yaml").write_text(text)

    async def run() -> list[ToolResult]:
        async with Toolbox.load(folder / "set.yaml") as box, box.session() as session:
            results = [await session.call(call) for call in calls]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    return asyncio.run(run())


def test_an_openapi_document_becomes_tools(tmp_path: Path, port: int):
    (tmp_path / "pets.json").write_text(json.dumps(_DOCUMENT))
    text = f"tools: [{{openapi: {{spec: pets.json, base_url: 'http://127.0.0.1:{port}', headers: {{x-key: abc}}}}}}]"
    pet = {"name": "Mia", "tags": ["cat"], "mother": {"name": "Lu"}}
    found, added, wrong, wrong_deep = ask(
        tmp_path,
        text,
        ToolCall("get_pet", {"pet_id": "7", "fields": ["a", "b"], "x-trace": "t1"}),
        ToolCall("add_pet", pet),
        ToolCall("add_pet", {"tags": []}),
        ToolCall("add_pet", {"name": "x", "mother": {"name": "y", "tags": ["bird"]}}),
    )
    seen = json.loads(found.content)
    assert (seen["method"], seen["path"], seen["query"]) == ("GET", "/pets/7", {"fields": ["a", "b"]})
    assert (seen["key"], seen["trace"]) == ("abc", "t1")
    assert json.loads(json.loads(added.content)["body"]) == pet
    assert wrong.outcome is wrong_deep.outcome is Outcome.MODEL_ERROR
    assert "name is required" in wrong.content and "tags" in wrong_deep.content


def test_only_the_schemas_that_are_needed_come_along(tmp_path: Path, port: int):
    (tmp_path / "set.yaml").write_text(
        f"tools: [{{openapi: {{spec: 'http://127.0.0.1:{port}/openapi.json', base_url: 'http://127.0.0.1:{port}',"
        " operations: [add_pet]}}]"
    )

    async def run() -> list[dict[str, Any]]:
        async with Toolbox.load(tmp_path / "set.yaml") as box:
            return box.schemas()

    parameters = asyncio.run(run())[0]["function"]["parameters"]
    assert set(parameters["$defs"]) == {"Pet", "Tag"}
    assert parameters["properties"]["mother"] == {"$ref": "#/$defs/Pet"}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.OK),
        (400, Outcome.MODEL_ERROR),
        (422, Outcome.MODEL_ERROR),
        (404, Outcome.TOOL_ERROR),
        (409, Outcome.TOOL_ERROR),
        (401, Outcome.INFRA_ERROR),
        (429, Outcome.INFRA_ERROR),
        (500, Outcome.INFRA_ERROR),
        (503, Outcome.INFRA_ERROR),
    ],
)
def test_a_status_says_whose_doing_it_was(tmp_path: Path, port: int, status: int, outcome: Outcome):
    text = f"""
tools:
  - http:
      name: status
      url: http://127.0.0.1:{port}/status/{{code}}
      description: Answer with a status.
      parameters: {{type: object, properties: {{code: {{type: integer}}}}, required: [code]}}
"""
    assert ask(tmp_path, text, ToolCall("status", {"code": status}))[0].outcome is outcome


def test_an_endpoint_sends_the_rest_as_body_or_query(tmp_path: Path, port: int):
    text = f"""
tools:
  - http: {{name: change, method: PUT, url: "http://127.0.0.1:{port}/pets/{{id}}", description: Change.,
           parameters: {{type: object, properties: {{id: {{type: string}}, deep: {{type: object}}}}, required: [id]}}}}
  - http: {{name: find, url: "http://127.0.0.1:{port}/pets", description: Find.,
           parameters: {{type: object, properties: {{q: {{type: string}}, exact: {{type: boolean}}}}}}}}
"""
    changed, found = ask(
        tmp_path,
        text,
        ToolCall("change", {"id": "a/b", "deep": {"x": [1]}}),
        ToolCall("find", {"q": "ä&b", "exact": True}),
    )
    seen = json.loads(changed.content)
    assert (seen["path"], json.loads(seen["body"])) == ("/pets/a%2Fb", {"deep": {"x": [1]}})
    assert json.loads(found.content)["query"] == {"q": ["ä&b"], "exact": ["true"]}


def test_a_server_that_is_away_is_infrastructure(tmp_path: Path):
    text = "tools: [{http: {name: away, url: 'http://127.0.0.1:9/', description: Away.}}]"
    assert ask(tmp_path, text, ToolCall("away"))[0].outcome is Outcome.INFRA_ERROR


def test_a_document_whose_server_is_away_is_infrastructure_and_a_wrong_address_is_not(tmp_path: Path, port: int):
    with pytest.raises(InfrastructureError, match="openapi http://127.0.0.1:9/openapi.json: cannot be fetched"):
        ask(tmp_path, "tools: [{openapi: {spec: 'http://127.0.0.1:9/openapi.json'}}]")
    with pytest.raises(AuthorError, match="cannot be fetched: The server answered 404"):
        ask(tmp_path, f"tools: [{{openapi: {{spec: 'http://127.0.0.1:{port}/status/404'}}}}]")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{}", "no OpenAPI 3"),
        ("[", "neither JSON nor YAML"),
        ('{"openapi": "3.0.0"}', "no paths"),
        ('{"openapi": "3.0.0", "paths": {}}', "no server address"),
    ],
)
def test_a_broken_document_is_found_at_the_start(tmp_path: Path, document: str, words: str):
    (tmp_path / "spec.json").write_text(document)
    with pytest.raises(AuthorError, match=words):
        ask(tmp_path, "tools: [{openapi: {spec: spec.json}}]")


def _fetch(folder: Path, config: str, *urls: str) -> list[ToolResult]:
    text = f"tools: [{{use: http_fetch, config: {config}}}]"
    return ask(folder, text, *(ToolCall("fetch_page", {"url": each}) for each in urls))


_LOCAL = "{hosts: [localhost], private_networks: [127.0.0.0/8, '::1/128']}"


def test_a_page_of_an_allowed_host_is_fetched(tmp_path: Path, port: int):
    page, large = _fetch(tmp_path, _LOCAL, f"http://localhost:{port}/page", f"http://localhost:{port}/large")
    assert page.content == "héllo"
    assert large.outcome is Outcome.OK and large.truncated and len(large.value) == 1 << 20


def test_redirects_are_followed_and_checked_again(tmp_path: Path, port: int):
    base = f"http://localhost:{port}"
    inside, outside, address, loop = _fetch(
        tmp_path,
        _LOCAL,
        f"{base}/redirect?to=/page",
        f"{base}/redirect?to=http://example.org/",
        f"{base}/redirect?to=http://127.0.0.1:{port}/page",
        f"{base}/redirect?to=/redirect%3Fto%3D/redirect%253Fto%253D/redirect",
    )
    assert inside.content == "héllo"
    assert outside.outcome is address.outcome is Outcome.REFUSED
    assert loop.outcome is not Outcome.OK


@pytest.mark.parametrize(
    ("url", "outcome"),
    [
        pytest.param("http://localhost:{port}/status/404", Outcome.TOOL_ERROR, id="404"),
        pytest.param("http://localhost:{port}/status/500", Outcome.INFRA_ERROR, id="500"),
        pytest.param("http://localhost:{port}/image", Outcome.TOOL_ERROR, id="an image"),
        pytest.param("http://localhost:9/", Outcome.INFRA_ERROR, id="nobody there"),
        pytest.param("ftp://localhost/", Outcome.MODEL_ERROR, id="ftp"),
        pytest.param("file:///etc/passwd", Outcome.MODEL_ERROR, id="a file"),
        pytest.param("no url", Outcome.MODEL_ERROR, id="no URL"),
        pytest.param("http://[::1", Outcome.MODEL_ERROR, id="a broken address"),
        pytest.param("http://user:pw@localhost:{port}/", Outcome.REFUSED, id="a user name"),
        pytest.param("http://example.org@localhost:{port}/", Outcome.REFUSED, id="a disguised host"),
        pytest.param("http://example.org/", Outcome.REFUSED, id="not on the list"),
        pytest.param("http://localhost.example.org/", Outcome.REFUSED, id="a longer name"),
        pytest.param("http://127.0.0.1:{port}/", Outcome.REFUSED, id="the address instead of the name"),
        pytest.param("http://xn--\x00/", Outcome.MODEL_ERROR, id="a null character"),
    ],
)
def test_what_is_not_allowed_is_told_apart(tmp_path: Path, port: int, url: str, outcome: Outcome):
    result = _fetch(tmp_path, _LOCAL, url.format(port=port))[0]
    assert result.outcome is outcome, result


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "2130706433",  # 127.0.0.1 as one number
        "0177.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "224.0.0.1",
    ],
)
def test_an_address_that_is_not_public_is_refused_even_if_listed(tmp_path: Path, port: int, host: str):
    config = f"{{hosts: ['{host.strip('[]')}']}}"
    result = _fetch(tmp_path, config, f"http://{host}:{port}/page")[0]
    assert result.outcome is not Outcome.OK, result
    if host in ("localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]"):
        assert result.outcome is Outcome.REFUSED, result
