"""IsSolved: verifiers of a whole trajectory, each a small picklable callable with a value in [0, 1].

    ExactMatch      the final answer equals (or contains) an accepted answer, after the usual normalisation
    NumericMatch    the last number of the final answer equals the accepted one
    StateMatch      the state that the tools were left in equals the wanted one (bookings, files, a database)
    JudgedStatus    mean status of a judge's recorded judgements (`verl_toolrl.rewards.judge`)

Any callable `(trajectory, answer) -> float` serves as well. The reference lies in `trajectory.extra`; a missing one is
the data's fault and raises, a wrong or odd answer of the model is a 0. What is not here: mathematical equivalence.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.rewards.steptool_released import STATUS_SCORES
from verl_toolrl.trajectory import Trajectory

__all__ = ["VERIFIERS", "ExactMatch", "JudgedStatus", "NumericMatch", "StateMatch", "Verifier", "make_verifier"]

Verifier = Callable[[Trajectory, str], float]
"""`(trajectory, final answer) -> score in [0, 1]`."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans({character: " " for character in string.punctuation})
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?")


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces, as in SQuAD's exact match."""
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def _reference(trajectory: Trajectory, field: str) -> Any:
    if field not in trajectory.extra:
        raise DatasetError(
            f"trajectory {trajectory.id!r}: extra has no {field!r} (keys: {sorted(trajectory.extra)}), which the "
            "verifier compares with"
        )
    return trajectory.extra[field]


def _accepted(trajectory: Trajectory, field: str) -> list[Any]:
    reference = _reference(trajectory, field)
    accepted = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    if not accepted or not all(isinstance(item, (str, int, float)) for item in accepted):
        raise DatasetError(
            f"trajectory {trajectory.id!r}: {field} is {reference!r}, wanted an answer or a list of accepted answers"
        )
    for item in accepted:
        if isinstance(item, str) and "<tool_call>" in item:
            raise DatasetError(
                f"trajectory {trajectory.id!r}: {field} holds tool calls, {item[:80]!r}, as rows of a single turn do "
                "(`verl-toolrl data make`); wanted the answer that the conversation ends with"
            )
    return accepted


@dataclass(frozen=True)
class ExactMatch:
    """1.0 if the final answer is one of the accepted ones after normalisation."""

    field: str = "ground_truth"
    """Key of `trajectory.extra`: a text or number, or a list of accepted ones."""
    contains: bool = False
    """Whether it is enough that the answer contains an accepted one as whole words; easily gamed by long answers."""

    def __call__(self, trajectory: Trajectory, answer: str) -> float:
        found = normalise_answer(answer)
        for item in _accepted(trajectory, self.field):
            wanted = normalise_answer(str(item))
            if found == wanted and found or self.contains and wanted and f" {wanted} " in f" {found} ":
                return 1.0
        return 0.0


@dataclass(frozen=True)
class NumericMatch:
    """1.0 if the last number of the final answer is one of the accepted ones within a tolerance."""

    field: str = "ground_truth"
    """Key of `trajectory.extra`: a number or its text, or a list of accepted ones."""
    relative: float = 1e-6
    """Relative tolerance."""
    absolute: float = 1e-9
    """Absolute tolerance."""

    def __call__(self, trajectory: Trajectory, answer: str) -> float:
        numbers = _NUMBER.findall(answer)
        wanted = []
        for item in _accepted(trajectory, self.field):
            found = _NUMBER.findall(str(item))
            if not found:
                raise DatasetError(f"trajectory {trajectory.id!r}: {self.field} {item!r} holds no number")
            wanted.append(_number(found[-1]))
        if not numbers:
            return 0.0
        last = _number(numbers[-1])
        return float(any(math.isclose(last, value, rel_tol=self.relative, abs_tol=self.absolute) for value in wanted))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


@dataclass(frozen=True)
class StateMatch:
    """1.0 if the state after the trajectory equals the wanted one: same keys, same order of lists, same types."""

    state: str = "final_state"
    """Key of `trajectory.extra` with the state that the tools were left in."""
    wanted: str = "ground_truth_state"
    """Key of `trajectory.extra` with the state that solves the task."""
    ignore: tuple[str, ...] = ()
    """Keys of mappings, at any depth, that are not compared (time stamps, running numbers)."""
    tolerance: float = 1e-9
    """Relative tolerance for floats; an int equals a float of the same value, a bool equals only a bool."""

    def __call__(self, trajectory: Trajectory, answer: str) -> float:
        return float(self._same(_reference(trajectory, self.state), _reference(trajectory, self.wanted)))

    def _same(self, found: Any, wanted: Any) -> bool:
        if isinstance(found, Mapping) and isinstance(wanted, Mapping):
            keys = wanted.keys() - set(self.ignore)
            return keys == found.keys() - set(self.ignore) and all(self._same(found[k], wanted[k]) for k in keys)
        if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
            return len(found) == len(wanted) and all(self._same(a, b) for a, b in zip(found, wanted))
        if isinstance(found, bool) or isinstance(wanted, bool):
            return found is wanted
        if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
            return math.isclose(found, wanted, rel_tol=self.tolerance)
        return type(found) is type(wanted) and bool(found == wanted)


@dataclass(frozen=True)
class JudgedStatus:
    """Mean status of the judgements that `annotate` or `Judge` recorded: Solved 1, Unsure 0.5, Unsolved 0."""

    field: str = "judgements"
    """Key of `trajectory.extra`: a list of judgements with a `status` each."""

    def __call__(self, trajectory: Trajectory, answer: str) -> float:
        judgements = _reference(trajectory, self.field)
        try:
            scores = [STATUS_SCORES[judgement["status"]] for judgement in judgements]
        except (KeyError, TypeError) as err:
            raise DatasetError(f"trajectory {trajectory.id!r}: {self.field}: {type(err).__name__}: {err}") from err
        if not scores:
            raise DatasetError(f"trajectory {trajectory.id!r}: {self.field} is empty")
        return sum(scores) / len(scores)


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "exact": ExactMatch,
    "numeric": NumericMatch,
    "state": StateMatch,
    "judge": JudgedStatus,
}
"""Names for recipes and the command line."""


def make_verifier(verifier: str | Mapping[str, Any] | Verifier) -> Verifier:
    """Build a verifier from a name, from `{"name": ..., **options}`, or take a callable as it is.

    Raises:
        UnknownNameError: If nobody knows the name.
        ConfigError: If an option is unknown.
    """
    if callable(verifier):
        return verifier
    options = {"name": verifier} if isinstance(verifier, str) else dict(verifier)
    name = options.pop("name", None)
    if name not in VERIFIERS:
        raise UnknownNameError("verifier", name, VERIFIERS)
    try:
        return VERIFIERS[name](**options)
    except TypeError as err:
        raise ConfigError(f"verifier {name!r}: {err}") from err
