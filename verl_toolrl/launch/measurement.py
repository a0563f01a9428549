"""Measures a checkpoint or an endpoint on the rows of some files, and keeps what it has when it is stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.evaluation.endpoint import Endpoint, ask, choose_model
from verl_toolrl.evaluation.questions import Question, read_questions
from verl_toolrl.evaluation.result import Answer, Measurement, fingerprint, load_measurement, measure, write_json
from verl_toolrl.formats import get_dialect
from verl_toolrl.launch.checkpoints import check_chat_template, find_model, merge, needs_merge
from verl_toolrl.launch.generate import ENGINE_LOG, generate

__all__ = ["MAX_TOKENS", "is_endpoint", "measure_model"]

MAX_TOKENS = 512
"""Most tokens of a response unless something else is said."""


def is_endpoint(model: str) -> bool:
    """Whether a model is given by the address of a server."""
    return model.startswith(("http://", "https://"))


def measure_model(
    model: str,
    files: Sequence[Path],
    output: Path,
    *,
    max_tokens: int = MAX_TOKENS,
    dialect: str = "toolrl",
    limit: int | None = None,
    resume: bool = False,
    endpoint: Endpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Measure a model and write the result file.

    Whatever ends it early (the server stops answering, the engine dies, Ctrl-C), the rows that were answered are
    written, with `complete: false`; `resume` goes on from there.

    Args:
        model: Folder, name or address.
        files: Rows to measure on.
        output: The result file.
        max_tokens: Limit of a response; decoding is greedy.
        dialect: In which calls are read out of the responses; `toolrl` for rows that ask for ToolRL's tags.
        limit: Rows to take of each set.
        resume: Keep the answers that `output` holds.
        endpoint: How to ask a server, where `model` is its address.
        progress: Called with answered and all rows, several times a second.

    Raises:
        ConfigError: Something given is wrong: rows, model, an output that holds something else.
        InfrastructureError: The engine or the server failed.
    """
    get_dialect(dialect)
    questions = read_questions(files, limit=limit)
    answers = _earlier(output, model, files, max_tokens) if resume and output.exists() else {}
    _check_writable(output)
    kind = "endpoint" if is_endpoint(model) else "checkpoint"
    begun, created, engine = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S"), ""
    missing = [question for question in questions if question.key not in answers]

    def done(key: str, answer: Answer) -> None:
        answers[key] = answer
        progress(len(answers), len(questions))

    def tick() -> None:
        progress(len(answers), len(questions))

    def result() -> Measurement:
        return measure(
            questions,
            answers,
            model=model,
            kind=kind,
            max_tokens=max_tokens,
            dialect=dialect,
            files=files,
            created=created,
            seconds=round(time.monotonic() - begun, 1),
            engine=engine,
        )

    if answers and not missing:
        return load_measurement(output)
    kept = len(answers)
    try:
        if not missing:
            pass
        elif kind == "endpoint":
            engine = asyncio.run(_ask(endpoint or Endpoint(model), missing, max_tokens, done))
        else:
            log, special = output.with_suffix(".engine.log"), get_dialect(dialect).special_tokens
            engine = _generate(model, missing, max_tokens, done, tick, log=log, special_tokens=special)
    finally:
        if len(answers) > kept or not missing:
            write_json(output, result().to_json())
    return result()


async def _ask(
    endpoint: Endpoint, questions: list[Question], max_tokens: int, done: Callable[[str, Answer], None]
) -> str:
    endpoint = replace(endpoint, model=await choose_model(endpoint))
    await ask(endpoint, questions, max_tokens=max_tokens, done=done)
    return endpoint.model


def _generate(
    model: str,
    questions: list[Question],
    max_tokens: int,
    done: Callable[[str, Answer], None],
    tick: Callable[[], None],
    *,
    log: Path,
    special_tokens: bool,
) -> str:
    folder = find_model(model)
    with tempfile.TemporaryDirectory(prefix="verl-toolrl-") as scratch:
        if folder is not None:
            check_chat_template(folder)
            if needs_merge(folder):
                folder = merge(folder, Path(scratch) / "merged")
        try:
            return generate(
                str(folder or model),
                questions,
                max_tokens=max_tokens,
                folder=Path(scratch),
                done=done,
                tick=tick,
                special_tokens=special_tokens,
            )
        except InfrastructureError as err:
            # The folder goes with this block; what the engine said is wanted after it.
            if not (Path(scratch) / ENGINE_LOG).exists():
                raise
            shutil.copyfile(Path(scratch) / ENGINE_LOG, log)
            raise InfrastructureError(f"{err}\nlog: {log}") from err


def _earlier(output: Path, model: str, files: Sequence[Path], max_tokens: int) -> dict[str, Answer]:
    """Answers of a measurement that was stopped; refuses one of another model, other rows or another limit."""
    earlier = load_measurement(output)
    for what, before, now in (
        ("model", earlier.model, model),
        ("files", [file["sha256"] for file in earlier.files], [fingerprint(file)["sha256"] for file in files]),
        ("limit of tokens", earlier.max_tokens, max_tokens),
    ):
        if before != now:
            raise ConfigError(f"{output} is a measurement with another {what}: give another --output")
    return {row.key: Answer(row.response, row.finish) for row in earlier.rows}


def _check_writable(output: Path) -> None:
    """Find out now, and not after a minute of generation, that the result has no place."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot write to {output.parent}: {err.strerror}") from err
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ConfigError(f"cannot write the result to {output}")
