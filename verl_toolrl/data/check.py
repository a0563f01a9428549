"""Checks of data sets before a run: what would stop it, and what would teach the wrong thing.

Errors are rows that a run cannot use: a wrong form, a ground truth that cannot be read. Warnings are rows that it can
use and that a person should look at: a ground truth that does not earn the maximum against itself, calls that break
their tool's schema, duplicates, prompts that also stand in another split, prompts that are longer than the limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

from verl_toolrl.errors import AuthorError
from verl_toolrl.formats import write_response
from verl_toolrl.formats.tool_list import read_tools, row_tools
from verl_toolrl.rewards import make_reward
from verl_toolrl.rewards.ground_truth import GroundTruth, parse_ground_truth
from verl_toolrl.schema import row_problems

__all__ = ["CheckReport", "Finding", "check_rows"]

MODES = ("released", "robust")
"""Modes of `toolrl` under which a ground truth is scored against itself."""


@dataclass
class Finding:
    """One check of one file, with the rows that fail it."""

    check: str
    severity: str
    """error or warning."""
    rows: list[tuple[int, str]] = field(default_factory=list)
    """Row number and what is wrong with it."""


@dataclass
class CheckReport:
    """Result for one file."""

    name: str
    rows: int
    findings: list[Finding]
    """Every check, also those without failing rows."""
    prompt_tokens: dict[str, float] = field(default_factory=dict)
    """min, mean, p95 and max, if a tokenizer was given."""
    calls: dict[int, int] = field(default_factory=dict)
    """Number of calls in a ground truth -> number of rows."""

    @property
    def errors(self) -> int:
        """Rows with an error."""
        return len({row for finding in self.findings if finding.severity == "error" for row, _ in finding.rows})

    @property
    def warnings(self) -> int:
        """Rows with a warning."""
        return len({row for finding in self.findings if finding.severity == "warning" for row, _ in finding.rows})


def check_rows(
    rows: Sequence[Any],
    name: str,
    *,
    others: Mapping[str, Sequence[Any]] | None = None,
    count_tokens: Callable[..., int] | None = None,
    max_prompt_length: int | None = None,
) -> CheckReport:
    """Check the rows of one file.

    Args:
        rows: Rows in verl's schema.
        name: Name of the file, for messages.
        others: Name -> rows of other splits, in which no prompt of this one may stand.
        count_tokens: Length in tokens of a prompt, template included, and of the schemas in the row's column `tools`,
            where it has one.
        max_prompt_length: Longest prompt that the run keeps whole.

    Returns:
        The findings.
    """
    form = Finding("form of the row", "error")
    unreadable = Finding("ground truth cannot be read", "error")
    schema = Finding("a call breaks its tool's schema", "warning")
    selves = {mode: Finding(f"ground truth does not earn the maximum ({mode})", "warning") for mode in MODES}
    usable: dict[int, Mapping[str, Any]] = {}
    calls: dict[int, int] = {}
    for index, row in enumerate(rows):
        problems = [*row_problems(row), *_tools_problems(row)]
        form.rows += [(index, problem) for problem in problems]
        if problems:
            continue
        usable[index] = row
        truth = _truth(index, row, unreadable)
        for mode, finding in selves.items():
            _check_self(index, row, truth, mode, finding)
        if truth is not None:
            calls[len(truth.calls)] = calls.get(len(truth.calls), 0) + 1
            _check_calls(index, row, truth, schema)
    findings = [form, unreadable, *selves.values(), schema, *_duplicates(usable)]
    findings += [_leakage(usable, other, other_rows) for other, other_rows in (others or {}).items()]
    findings += _splits(usable)
    report = CheckReport(name, len(rows), findings, calls=dict(sorted(calls.items())))
    if count_tokens is not None:
        _check_lengths(usable, count_tokens, max_prompt_length, report)
    return report


def _tools_problems(row: Any) -> list[str]:
    """Return what is wrong with the column `tools`, which goes into the chat template."""
    try:
        read_tools(row.get("tools") if isinstance(row, Mapping) else None, "column 'tools'")
    except AuthorError as err:
        return [str(err)]
    return []


def _truth(index: int, row: Mapping[str, Any], finding: Finding) -> GroundTruth | None:
    try:
        return parse_ground_truth(row["reward_model"]["ground_truth"], "ground_truth")
    except AuthorError as err:
        finding.rows.append((index, str(err)))
        return None


def _check_self(index: int, row: Mapping[str, Any], truth: GroundTruth | None, mode: str, finding: Finding) -> None:
    """Score the ground truth against itself; the released scorer gives 0 for rows without calls, and so 1 in all."""
    ground_truth = row["reward_model"]["ground_truth"]
    response = ground_truth
    try:
        if not isinstance(ground_truth, str) or "<think>" not in ground_truth:
            if truth is None or mode == "released":
                return  # the released scorer knows its own form only
            response = write_response(
                truth.calls, thought="", response=truth.response or (None if truth.calls else ".")
            )
        result = make_reward("toolrl", mode=mode)(response=response, ground_truth=ground_truth)
    except AuthorError as err:
        if truth is not None:
            finding.rows.append((index, str(err)))
        return
    wanted = 1.0 if mode == "released" and "<tool_call>" not in ground_truth else 4.0
    if result.score < wanted:
        parts = ", ".join(f"{name} {value:g}" for name, value in result.components.items())
        finding.rows.append((index, f"earns {result.score:g} of {wanted:g} ({parts})"))


def _check_calls(index: int, row: Mapping[str, Any], truth: GroundTruth, finding: Finding) -> None:
    try:
        tools = {tool["name"]: tool["parameters"] for tool in row_tools(row)}
    except AuthorError as err:
        finding.rows.append((index, str(err)))
        return
    for call in truth.calls if tools else ():
        problem = _call_problem(call.arguments, tools.get(call.name))
        if problem:
            finding.rows.append((index, f"{call.name}: {problem}"))
            return


def _call_problem(arguments: Mapping[str, Any], schema: Any) -> str | None:
    if schema is None:
        return "no such tool in the prompt"
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        unknown = [key for key in arguments if key not in properties and schema.get("additionalProperties") is not True]
        if unknown:
            return f"unknown argument {unknown[0]!r}"
    try:
        validator = jsonschema_rs.validator_for(dict(schema))
        for error in validator.iter_errors(dict(arguments)):
            return f"{'.'.join(map(str, error.instance_path)) or 'arguments'}: {error.message[:120]}"
    except (ValueError, TypeError, jsonschema_rs.ReferencingError) as err:
        return f"its schema is invalid: {str(err)[:120]}"
    return None


def _prompt_key(row: Mapping[str, Any]) -> str:
    return json.dumps(row["prompt"], sort_keys=True, ensure_ascii=True, default=str)


def _duplicates(rows: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Find rows whose prompt came before, apart by whether the ground truth is the same."""
    same = Finding("duplicate of another row", "warning")
    other = Finding("same prompt, another ground truth", "warning")
    seen: dict[str, tuple[int, Any]] = {}
    for index, row in rows.items():
        truth = row["reward_model"]["ground_truth"]
        first = seen.setdefault(_prompt_key(row), (index, truth))
        if first[0] != index:
            finding = same if first[1] == truth else other
            finding.rows.append((index, f"prompt of row {first[0]}"))
    return [same, other]


def _leakage(rows: Mapping[int, Mapping[str, Any]], name: str, others: Sequence[Any]) -> Finding:
    finding = Finding(f"prompt also stands in {name}", "warning")
    known = {_prompt_key(row): index for index, row in enumerate(others) if not any(row_problems(row))}
    for index, row in rows.items():
        if _prompt_key(row) in known:
            finding.rows.append((index, f"row {known[_prompt_key(row)]} of {name}"))
    return finding


def _splits(rows: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Find prompts in several splits of one file, as `extra_info.split` names them."""
    seen: dict[str, tuple[int, str]] = {}
    finding = Finding("prompt stands in two splits of the file", "warning")
    names = set()
    for index, row in rows.items():
        split = (row.get("extra_info") or {}).get("split")
        if split is None:
            continue
        names.add(split)
        first = seen.setdefault(_prompt_key(row), (index, split))
        if first[1] != split:
            finding.rows.append((index, f"split {split}, and row {first[0]} in split {first[1]}"))
    return [finding] if len(names) > 1 else []


def _check_lengths(
    rows: Mapping[int, Mapping[str, Any]],
    count_tokens: Callable[..., int],
    max_prompt_length: int | None,
    report: CheckReport,
) -> None:
    lengths = {index: _length(row, count_tokens) for index, row in rows.items()}
    if not lengths:
        return
    ordered = sorted(lengths.values())
    report.prompt_tokens = {
        "min": ordered[0],
        "mean": sum(ordered) / len(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }
    if max_prompt_length is not None:
        long = Finding(f"prompt longer than {max_prompt_length} tokens", "warning")
        long.rows = [(index, f"{length} tokens") for index, length in lengths.items() if length > max_prompt_length]
        report.findings.append(long)


def _length(row: Mapping[str, Any], count_tokens: Callable[..., int]) -> int:
    tools = row.get("tools")
    if tools is None:
        return count_tokens(row["prompt"])
    return count_tokens(row["prompt"], [{"type": "function", "function": dict(tool)} for tool in read_tools(tools)])
