"""Search over a local corpus by BM25 (library bm25s).

The corpus is a JSON-lines file of `{"id": ..., "title": ..., "text": ...}`; without one the small handbook beside this
file. It is read and indexed once a process and shared by all trajectories. Ties are broken by the order of the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from verl_toolrl.errors import ConfigError
from verl_toolrl.toolbox import StatefulTool, ToolError, tool

_HANDBOOK = Path(__file__).with_name("handbook.jsonl")


class Corpus(StatefulTool):
    """The corpus and the tools on it.

    Args:
        corpus: Path of the JSON-lines file.
    """

    def __init__(self, corpus: str | None = None) -> None:
        self._documents, self._rank = _index(str(corpus or _HANDBOOK))

    @classmethod
    def startup(cls, corpus: str | None = None) -> None:
        """Read and index the corpus before the first trajectory needs it."""
        _index(str(corpus or _HANDBOOK))

    @tool(domain="knowledge", deterministic=True, isolation="inline", limits={"timeout": 5.0, "output_tokens": 1024})
    def search(self, query: str, top_k: Annotated[int, Field(ge=1, le=20)] = 3) -> list[dict[str, Any]]:
        """Search the documents for words and return the best matches with id, title and text.

        Args:
            query: Words to look for.
            top_k: How many documents to return.
        """
        return [self._documents[i] for i in self._rank(query)[:top_k]]

    @tool(domain="knowledge", deterministic=True, isolation="inline", limits={"timeout": 5.0, "output_tokens": 2048})
    def read_document(self, id: str) -> dict[str, Any]:
        """Read one document.

        Args:
            id: Its id, as search returns it.
        """
        for document in self._documents:
            if document["id"] == id:
                return document
        raise ToolError(f"There is no document {id[:60]!r}.")


@functools.lru_cache(maxsize=8)
def _index(path: str) -> tuple[list[dict[str, Any]], Callable[[str], list[int]]]:
    """Return the documents and a function from a query to the indices of matching ones, best first."""
    try:
        import bm25s
    except ImportError as err:
        raise ConfigError("the search tool needs bm25s: pip install 'verl-toolrl[tools]'") from err
    documents = _read(path)
    texts = [f"{each['title']} {each['text']}" for each in documents]
    retriever = bm25s.BM25()
    tokens = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    retriever.index(tokens, show_progress=False)

    def rank(query: str) -> list[int]:
        words = bm25s.tokenize(query, stopwords="en", return_ids=False, show_progress=False)[0]
        if not words:
            return []
        scores = retriever.get_scores(words)
        order = sorted(range(len(documents)), key=lambda i: (-float(scores[i]), i))
        return [i for i in order if scores[i] > 0]

    return documents, rank


def _read(path: str) -> list[dict[str, Any]]:
    documents = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                documents.append(
                    {"id": str(row.get("id", number)), "title": str(row.get("title", "")), "text": row["text"]}
                )
    except OSError as err:
        raise ConfigError(f"corpus {path}: {err.strerror}") from err
    except (ValueError, KeyError, AttributeError) as err:
        raise ConfigError(f"corpus {path}, line {number}: wanted an object with 'text', found {line[:80]!r}") from err
    if not documents:
        raise ConfigError(f"corpus {path}: empty")
    return documents
