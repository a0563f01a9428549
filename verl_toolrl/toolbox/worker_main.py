"""What a worker process runs: read a request, run the tool, answer; end when the parent does (see `workers`)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

import orjson

from verl_toolrl.toolbox import workers
from verl_toolrl.toolbox.arguments import ArgumentChecker
from verl_toolrl.toolbox.outcomes import classify, describe, place_of
from verl_toolrl.toolbox.output import render

_HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the socket whose number is the first argument until it closes."""
    workers.inside_worker = True
    sock = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent(int(sys.argv[2]))
    hello = _receive(sock)
    sys.path[:] = list(dict.fromkeys([*sys.path, *hello["path"]]))
    memory_mb = hello["memory_mb"]
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _send(sock, {"ok": True})
    found: dict[tuple[str, str, str], Any] = {}
    state: Any = None
    while (request := _receive(sock)) is not None:
        answer: dict[str, Any]
        try:
            if request.get("op") == "release":
                instance, state = state, None
                close = getattr(instance, "close", None)
                if callable(close):
                    close()
                answer = {"ok": True}
            elif request.get("op") == "snapshot":
                state = _made(found, request, state)
                # As text, because a state may hold integers that a frame cannot.
                answer = {"ok": True, "snapshot": json.dumps(render(state.snapshot())[1])}
            else:
                if request["state"] is not None:
                    state = _made(found, request, state)
                answer = _call(found, request, state)
        except BaseException as exc:  # the parent must hear of every end, also SystemExit
            answer = {"ok": False, "outcome": classify(exc).value, "text": describe(exc), "error": describe(exc)}
            answer["place"] = place_of(exc)
        answer["rss_mb"] = _rss_mb()
        _send(sock, answer)


def _call(found: dict[tuple[str, str, str], Any], request: dict[str, Any], state: Any) -> dict[str, Any]:
    tool = _find(found, request["target"])
    arguments = request["arguments"]
    infrastructure = tuple(getattr(tool, "infrastructure_errors", ()))
    try:
        if getattr(tool, "converted", None):
            arguments = ArgumentChecker(tool.schema, converted=tool.converted).check(arguments)
        function = getattr(tool, "function", tool)
        returned = function(state, **arguments) if request["state"] is not None else function(**arguments)
        text, value = render(returned)
    except BaseException as exc:  # as above
        return {
            "ok": False,
            "outcome": classify(exc, infrastructure).value,
            "text": describe(exc),
            "error": describe(exc),
        }
    limit = request["limit"]
    if len(text) > limit:  # a flood stays here
        return {"ok": True, "text": text[:limit], "value": None, "length": len(text)}
    return {
        "ok": True,
        "text": text,
        "value": value if type(returned) is not str else None,
        "same": type(returned) is str,
    }


def _made(found: dict[tuple[str, str, str], Any], request: dict[str, Any], state: Any) -> Any:
    return _find(found, request["state"]["target"])(**request["state"]["keywords"]) if state is None else state


def _find(found: dict[tuple[str, str, str], Any], target: dict[str, str]) -> Any:
    key = (target["module"], target["file"], target["name"])
    if key not in found:
        item: Any = _module(target["module"], target["file"])
        for part in target["name"].split("."):
            item = getattr(item, part)
        found[key] = item
    return found[key]


def _module(name: str, file: str) -> Any:
    if name != "__main__":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            if not file:
                raise
    # A script, or a file that a tool set names by its path: run it under a name that is not __main__.
    name = f"_toolbox_worker_{abs(hash(file))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _die_with_parent(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _rss_mb() -> float:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, MemoryError):
        return 0.0


def _receive(sock: socket.socket) -> Any:
    header = _read(sock, _HEADER.size)
    if header is None:
        return None
    body = _read(sock, _HEADER.unpack(header)[0])
    return None if body is None else orjson.loads(body)


def _read(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _send(sock: socket.socket, answer: dict[str, Any]) -> None:
    try:
        body = orjson.dumps(answer)
    except TypeError:  # a value beyond orjson (an integer of 100 bits): its text says the same
        body = orjson.dumps({**answer, "value": None})
    sock.sendall(_HEADER.pack(len(body)) + body)


if __name__ == "__main__":
    main()
