"""The result file of a measurement: one JSON object with every response, its scores, and what was measured how.

    {"schema": "verl-toolrl/evaluation/1", "model": "...", "kind": "checkpoint", "max_tokens": 160, "dialect": "toolrl",
     "complete": true,
     "files": [{"path": "...", "sha256": "..."}], "created": "2026-08-22T14:15:00", "seconds": 61.2,
     "sets": {"world/seen": {"rows": 256, "rows_with_calls": 256, "format": 0.91, "correctness": 0.8, "acc": 0.31}},
     "rows": [{"key": "...", "data_source": "world/seen", "question": "...", "ground_truth": "...", "response": "...",
               "finish": "stop", "format": 1.0, "correctness": 3.0, "acc": 1.0, "calls": 1}]}

A measurement that was interrupted is written too, with `complete: false` and the rows it has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.evaluation.questions import Question
from verl_toolrl.evaluation.scores import RowScore, SetScore, mean_scores, score_response

__all__ = ["SCHEMA", "Answer", "Measurement", "ScoredRow", "fingerprint", "load_measurement", "measure", "write_json"]

SCHEMA = "verl-toolrl/evaluation/1"


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one question."""

    text: str
    finish: str = "stop"
    """`stop`: the model ended; `length`: it was cut at the limit of tokens."""


@dataclass(frozen=True)
class ScoredRow:
    """One response with its scores."""

    key: str
    data_source: str
    question: str
    """The last message of the prompt, for a reader."""
    ground_truth: str
    response: str
    finish: str
    score: RowScore


@dataclass
class Measurement:
    """Responses of one model to some files."""

    model: str
    """Folder or address, as it was given."""
    kind: str
    """checkpoint or endpoint."""
    max_tokens: int
    """Most tokens of a response. Decoding is greedy."""
    dialect: str = "toolrl"
    """In which calls are read out of the responses."""
    files: list[dict[str, str]] = field(default_factory=list)
    """`path` and `sha256` of each."""
    rows: list[ScoredRow] = field(default_factory=list)
    complete: bool = True
    created: str = ""
    """Local time of the start, ISO 8601."""
    seconds: float = 0.0
    engine: str = ""
    """What generated: `vllm 0.28.0`, or the name of the model at the endpoint."""

    @property
    def sets(self) -> dict[str, SetScore]:
        """Means by set, in the order of the rows."""
        by_set: dict[str, list[RowScore]] = {}
        for row in self.rows:
            by_set.setdefault(row.data_source, []).append(row.score)
        return {name: mean_scores(scores) for name, scores in by_set.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of the result file."""
        content = {key: value for key, value in asdict(self).items() if key != "rows"}
        rows = []
        for row in self.rows:
            flat = asdict(row)
            rows.append({**{key: value for key, value in flat.items() if key != "score"}, **flat["score"]})
        sets = {name: asdict(score) for name, score in self.sets.items()}
        return {"schema": SCHEMA, **content, "sets": sets, "rows": rows}


def measure(
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    *,
    model: str,
    kind: str,
    max_tokens: int,
    dialect: str = "toolrl",
    files: Sequence[Path] = (),
    **about: Any,
) -> Measurement:
    """Score the answers that are there; the measurement is complete if every question has one.

    Args:
        questions: What was asked.
        answers: By key of the question.
        model: Folder or address.
        kind: checkpoint or endpoint.
        max_tokens: Limit of a response.
        dialect: In which calls are read out of the responses.
        files: Where the questions come from.
        **about: `created`, `seconds`, `engine`.
    """
    rows = []
    for question in questions:
        answer = answers.get(question.key)
        if answer is not None:
            rows.append(
                ScoredRow(
                    key=question.key,
                    data_source=question.data_source,
                    question=_readable(question.messages[-1].get("content")),
                    ground_truth=question.ground_truth,
                    response=answer.text,
                    finish=answer.finish,
                    score=score_response(answer.text, question, dialect),
                )
            )
    return Measurement(
        model=model,
        kind=kind,
        max_tokens=max_tokens,
        dialect=dialect,
        files=[fingerprint(file) for file in files],
        rows=rows,
        complete=len(rows) == len(questions),
        **about,
    )


def fingerprint(file: Path) -> dict[str, str]:
    """Path and SHA-256 of a file."""
    return {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def load_measurement(source: Path | Mapping[str, Any]) -> Measurement:
    """Read a result file, or its content.

    Raises:
        ConfigError: If it is not there, or is no result file of this version.
    """
    where = str(source) if isinstance(source, Path) else "result"
    try:
        content = dict(json.loads(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source)
        if content.get("schema") != SCHEMA:
            raise ConfigError(f"{where}: not a result of `verl-toolrl evaluate` (schema {content.get('schema')!r})")
        rows = [_row(row) for row in content["rows"]]
        fields = {
            key: content[key] for key in ("model", "kind", "max_tokens", "dialect", "files", "complete", "created")
        }
        return Measurement(**fields, seconds=content["seconds"], engine=content["engine"], rows=rows)
    except OSError as err:
        raise ConfigError(f"{where}: {err.strerror}") from err
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise ConfigError(f"{where}: not a result of `verl-toolrl evaluate` ({type(err).__name__}: {err})") from err


def _row(row: Mapping[str, Any]) -> ScoredRow:
    score = RowScore(row["format"], row["correctness"], row["acc"], row["calls"])
    texts = {key: row[key] for key in ("key", "data_source", "question", "ground_truth", "response", "finish")}
    return ScoredRow(**texts, score=score)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # What UTF-8 cannot hold, a lone surrogate in a response, becomes JSON's own escape for it.
    scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
    scratch.replace(path)


def _readable(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))
