"""Rewards that a user writes, as a plain function or as a class.

    def score(*, response, ground_truth, tools=None, step=0, total_steps=None):
        return 1.0 if "please" in response else 0.0

The function takes the arguments it names, with `**kwargs` all of them; one that names `step` is called twice, see
`unscheduled`. It returns a number, a mapping of components (the score is their sum), or a `Reward`. It is named by
where it is, `package.module:score` or `path/to/file.py:score`, so that the configured reward pickles, and imported
where it is first called. `Answers` checks what functions and classes return, of responses and of trajectories alike.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from verl_toolrl.errors import ConfigError, nearest
from verl_toolrl.rewards.base import Reward

__all__ = ["AnswerError", "Answers", "FunctionReward", "OwnReward", "load_object"]

_ARGUMENTS = ("response", "ground_truth", "tools", "step", "total_steps")


@lru_cache(maxsize=256)
def load_object(path: str) -> Any:
    """Import `package.module:name` or `path/to/file.py:name`.

    Raises:
        ConfigError: If the module, file or name does not exist.
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name:
        raise ConfigError(f"{path!r}: wanted package.module:name or path/to/file.py:name")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (ImportError, OSError) as err:
        raise ConfigError(f"{path!r}: cannot import {module_name!r} ({err})") from err
    if not hasattr(module, name):
        raise ConfigError(f"{path!r}: {module_name!r} has no {name!r}{nearest(name, vars(module))}")
    return getattr(module, name)


def _load_file(path: Path) -> Any:
    path = path.resolve()
    # One name a file, so that two files of the same stem do not meet, and objects of the file pickle in this process.
    name = f"verl_toolrl_user_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def accepted_arguments(function: Callable[..., Any], where: str) -> tuple[str, ...]:
    """Return which of our arguments a function takes; with `**kwargs`, all of them.

    Raises:
        ConfigError: If it asks for an argument that we do not have, or does not take `response`.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return _ARGUMENTS
    for parameter in parameters:
        if parameter.name not in _ARGUMENTS and parameter.default is parameter.empty:
            hint = nearest(parameter.name, _ARGUMENTS)
            raise ConfigError(f"{where}: asks for {parameter.name!r}{hint}; we give {', '.join(_ARGUMENTS)}")
    names = tuple(parameter.name for parameter in parameters if parameter.name in _ARGUMENTS)
    if "response" not in names:
        raise ConfigError(f"{where}: must take 'response'; we give {', '.join(_ARGUMENTS)}")
    return names


def names_step(function: Callable[..., Any]) -> bool:
    """Whether a function names `step`, so that what it answers may follow a schedule; `**kwargs` names nothing."""
    parameter = inspect.signature(function).parameters.get("step")
    return parameter is not None and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


class AnswerError(ConfigError):
    """A user's reward answered what nobody can train on: here, something else than finite numbers."""

    kind = "non-finite"
    """The fault in the words of `verl-toolrl reward lint`."""


class OtherComponentsError(AnswerError):
    """A user's reward answered other components than at first."""

    kind = "keys"


class Answers:
    """Checks what one reward of a user answers: finite numbers, and the same components every time.

    The components of the first answer are what the others are held to: a log would change in the middle of a run, and
    GDPO would have nothing to normalise. Threads share them, and a pickled copy takes them along; `expect` is for
    another process that builds the same reward anew.

    Args:
        where: How the message of an error names the reward.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._origin = "its first answer"
        self._first: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> tuple[str, ...] | None:
        """The components that every answer must have; None before the first."""
        return self._first.get("names")

    def expect(self, names: Iterable[str], origin: str) -> None:
        """Hold every answer to these components, as if they were those of the first.

        Args:
            names: Components that the same reward answered elsewhere.
            origin: How the message of an error names that answer.
        """
        self._first, self._origin = {"names": tuple(names)}, origin

    def checked(self, answer: Any) -> Any:
        """Return a number, a mapping or a `Reward` as a `Reward` of floats; what has `step_rewards` as it is.

        Raises:
            AnswerError: If score or a component is no finite number, or there are other components than at first.
        """
        whole = isinstance(answer, Reward) or hasattr(answer, "step_rewards")
        parts = answer.components if whole else answer if isinstance(answer, Mapping) else {"function": answer}
        components = {str(name): self._finite(name, value) for name, value in parts.items()}
        score = self._finite("score", answer.score) if isinstance(answer, Reward) else math.fsum(components.values())
        self._hold(tuple(components))
        if isinstance(answer, Reward):
            return replace(answer, score=score, components=components)
        return answer if whole else Reward(score, components)

    def _finite(self, name: object, value: Any) -> float:
        try:
            number = float(value) if isinstance(value, Real) else math.nan
        except OverflowError:  # a whole number beyond the floats
            number = math.inf
        if not math.isfinite(number):
            raise AnswerError(f"{self._where}: {name} must be a finite number, got {value!r:.80}")
        return number

    def _hold(self, names: tuple[str, ...]) -> None:
        # One operation, so that threads need no lock, which would not pickle.
        first = self._first.setdefault("names", names)
        missing, new = ([name for name in a if name not in b] for a, b in ((first, names), (names, first)))
        if missing or new:
            found = " and ".join(
                f"{what} {', '.join(map(repr, each))}" for what, each in (("lacks", missing), ("adds", new)) if each
            )
            raise OtherComponentsError(
                f"{self._where}: the answer {found}; {self._origin} had the components {', '.join(first) or 'none'} "
                "(a plain number is 'function'), and every answer needs the same"
            )


class OwnReward:
    """A user's class as a reward: what it answers is checked, everything else is its own.

    Args:
        path: Where the class is, or its registered name.
        reward: What it made.
        answers: Of the reward that this one is a form of; None: it starts anew.

    Raises:
        ConfigError: If it made nothing that can be called.
    """

    def __init__(self, path: str, reward: Any, answers: Answers | None = None) -> None:
        if not callable(reward):
            raise ConfigError(f"{path}: made {type(reward).__name__}, wanted something to call with a response")
        self.path, self.reward, self._answers = path, reward, answers or Answers(path)
        # What asks for the arguments (does it take a trajectory?) gets the user's.
        self.__signature__ = inspect.signature(reward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's object.

        Raises:
            ConfigError: As `Answers.checked`.
        """
        return self._answers.checked(self.reward(*args, **kwargs))

    def unscheduled(self) -> OwnReward:
        """The same without its schedules, where the class knows of any."""
        plain = getattr(self.reward, "unscheduled", None)
        return self if plain is None else OwnReward(self.path, plain(), self._answers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for these before there is a `reward`
            raise AttributeError(name)
        return getattr(self.reward, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnReward) and bool(self.reward == other.reward)

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnReward, (self.path, self.reward, self._answers)

    def __repr__(self) -> str:
        return f"OwnReward({self.path!r})"


@dataclass(frozen=True)
class FunctionReward:
    """A user's function as a reward; component `function`, or those that it returns."""

    path: str
    """Where the function is."""
    at_end: bool = False
    """Tell the function that every step is the last one: what it gives then does not follow its schedule."""
    _answers: Answers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        accepted_arguments(load_object(self.path), self.path)
        object.__setattr__(self, "_answers", Answers(self.path))

    def __call__(
        self, *, response: Any, ground_truth: Any, tools: Any = None, step: int = 0, total_steps: int | None = None
    ) -> Reward:
        """Call the function; see `RewardFunction`.

        Raises:
            ConfigError: If it returns anything but finite numbers, or other components than at first.
        """
        given = {
            "response": response,
            "ground_truth": ground_truth,
            "tools": tools,
            "step": (total_steps or 0) if self.at_end else step,
            "total_steps": total_steps,
        }
        function = load_object(self.path)
        answer = function(**{name: given[name] for name in accepted_arguments(function, self.path)})
        checked: Reward = self._answers.checked(answer)
        return checked

    def unscheduled(self) -> FunctionReward:
        """The same function at the end of the run, where it names the step (else it need not be called twice)."""
        if not names_step(load_object(self.path)):
            return self
        plain = replace(self, at_end=True)
        object.__setattr__(plain, "_answers", self._answers)  # both are reported side by side
        return plain
