"""From what a tool returns to what the model reads: text, cut to a number of tokens, and saying so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from verl_toolrl.toolbox.outcomes import ToolError

__all__ = ["Cutter", "Tokenizer", "render"]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class Tokenizer(Protocol):
    """What the toolbox needs of a tokenizer; those of transformers and tokenizers fit."""

    def encode(self, text: str, /, **kwargs: Any) -> Any:
        """Return token ids, or an object with `ids`."""
        ...

    def decode(self, ids: Sequence[int], /, **kwargs: Any) -> str:
        """Return the text of token ids."""
        ...


def render(returned: Any) -> tuple[str, Any]:
    """Turn a return value into text for the model and a JSON-like value for rewards.

    Strings stay as they are; everything else becomes compact JSON. The value is a copy, so that a tool that goes on
    changing what it returned does not change an answer already given.

    Raises:
        ToolError: If it has no JSON form (an open file, a cycle).
    """
    if type(returned) is str:
        return _encodable(returned), returned
    if returned is None:
        return "null", None
    if isinstance(returned, (bytes, bytearray)):
        text = bytes(returned).decode("utf-8", errors="replace")
        return text, text
    try:
        raw = orjson.dumps(returned, default=_plain, option=_OPTIONS)
        return raw.decode(), orjson.loads(raw)
    except (TypeError, ValueError, RecursionError) as err:
        return _render_slowly(returned, err)


def _render_slowly(returned: Any, err: Exception) -> tuple[str, Any]:
    """What orjson refuses and the standard library takes: integers beyond 64 bits, lone surrogates."""
    try:
        text = json.dumps(returned, default=_plain, ensure_ascii=True)
        return text, json.loads(text)
    except Exception:  # any __str__ or model_dump of the author's may raise anything
        raise ToolError(f"The tool returned {type(returned).__name__}, which has no JSON form.") from err


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, (tuple, bytes)):
        return list(value) if isinstance(value, tuple) else value.decode("utf-8", errors="replace")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # lone surrogates, which no tokenizer takes
        return text.encode("utf-8", errors="replace").decode()


class Cutter:
    """Counts and cuts tokens.

    Args:
        tokenizer: Of the model that reads. Without one a token is taken to be three UTF-8 bytes, which overestimates
            the tokens of English and underestimates none of the common scripts by much.
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._encode: Callable[[str], Sequence[int]] | None = None if tokenizer is None else self._ids

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._encode(text)) if self._encode else (len(text.encode()) + 2) // 3

    def cut(self, text: str, limit: int) -> tuple[str, int, bool]:
        """Return at most `limit` tokens of the beginning of `text`, how many they are, and whether anything was cut.

        The note that says so stands after the cut and is not counted.
        """
        if len(text) <= limit // 4:  # a character is at most four bytes, so at most four tokens of any byte-level BPE
            return text, self.count(text), False
        # Tokenising a flood takes longer than the tool did: 16 characters a token is more than any text has.
        head = text[: limit * 16]
        if self._tokenizer is None:
            raw = head.encode()
            kept, total = raw[: limit * 3].decode(errors="ignore"), (len(raw) + 2) // 3
        else:
            ids = self._ids(head)
            kept, total = (head, len(ids)) if len(ids) <= limit else (self._text(ids[:limit]), len(ids))
        if total <= limit and len(head) == len(text):
            return text, total, False
        more = "more than " if len(head) < len(text) else ""
        shown = min(limit, total)
        return f"{kept}\n[cut: the first {shown} of {more}{total} tokens are shown]", shown, True

    def _ids(self, text: str) -> Sequence[int]:
        assert self._tokenizer is not None
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return getattr(ids, "ids", ids)

    def _text(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(ids).rstrip("\ufffd")
