"""The mode `paper`, Tool-N1, mixes, users' own functions, and the registry."""

from __future__ import annotations

import copy
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.formats import write_response
from verl_toolrl.rewards import (
    answered_components,
    configured_reward,
    expect_components,
    known_rewards,
    make_reward,
    register_reward,
    unscheduled,
)
from verl_toolrl.rewards.ground_truth import parse_ground_truth
from verl_toolrl.rewards.trajectory import score_trajectory, takes_trajectory
from verl_toolrl.rewards.watch import make_watcher
from verl_toolrl.trajectory import Step, ToolCall, Trajectory

W = ToolCall("w", {"city": "Paris", "unit": "c"})


def text(*calls: ToolCall) -> str:
    return write_response(calls, thought="one two", response=None if calls else "r")


def paper(calls: list[ToolCall], truth: list[ToolCall], step: int = 0, total: int = 100, **options: Any) -> Any:
    reward = make_reward("toolrl", mode="paper", **options)
    return reward(response=text(*calls), ground_truth=text(*truth), step=step, total_steps=total).components


A = [ToolCall("A", {"x": 1, "y": 1}), ToolCall("A", {"x": 1, "y": 2})]
# (id, calls, ground truth, same-name pairs, any pairs), from the formulas of §3.3
PAPER = [
    ("wrong name: 0 of 4; any pairs 3 of 4", [ToolCall("v", W.arguments)], [W], -3.0, 1.5),
    ("a duplicate costs nothing", [W, W], [W], 3.0, 3.0),
    ("one of two missing: 4 of 7", [W], [W, ToolCall("w", {"city": "London", "unit": "c"})], 3 / 7, 3 / 7),
    ("optimal: 6 of 7", [A[1], ToolCall("A", {"x": 1, "y": 7})], A, 6 * 6 / 7 - 3, 6 * 6 / 7 - 3),
    ("both without arguments", [ToolCall("p", {})], [ToolCall("p", {})], 3.0, 3.0),
    ("true equals 1", [ToolCall("f", {"x": True})], [ToolCall("f", {"x": 1})], 3.0, 3.0),
    # NaN equals nothing: names 1, keys 1, values 0 of 3
    ("NaN", [ToolCall("f", {"x": math.nan})], [ToolCall("f", {"x": math.nan})], 1.0, 1.0),
    ("no calls wanted", [W], [], 0.0, 0.0),
]


@pytest.mark.parametrize(("calls", "truth", "same", "any_"), [row[1:] for row in PAPER], ids=[row[0] for row in PAPER])
def test_paper_follows_the_formulas(calls: list[ToolCall], truth: list[ToolCall], same: float, any_: float) -> None:
    assert math.isclose(same, paper(calls, truth)["correctness"], abs_tol=1e-12)
    assert math.isclose(any_, paper(calls, truth, pairs="any")["correctness"], abs_tol=1e-12)


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        # half right: names 1, keys 1/2, values 1 of 4 -> 0.625
        ({}, 0, (1.0, 0.75)),
        ({"scale": "equal_max"}, 0, (1.0, 0.25)),
        ({"scale": "two_stage"}, 29, (1.0, 0.25)),
        ({"scale": "two_stage"}, 30, (0.5, 0.75)),
        ({"scale": "dynamic"}, 50, (1.5, 0.625)),  # p = 1/2: format [-1.5, 1.5], correctness [-2.5, 2.5]
        # keys differ: names 1, keys 0, values 1 of 4
        ({"granularity": "finegrained"}, 0, (1.0, 0.0)),
        ({"granularity": "intermediate"}, 0, (1.0, 0.0)),  # names 1 of 2
        ({"granularity": "coarse"}, 0, (1.0, -3.0)),
    ],
)
def test_paper_variants(options: dict[str, Any], step: int, expected: tuple[float, float]) -> None:
    components = paper([ToolCall("w", {"city": "Paris"})], [W], step, **options)
    assert all(math.isclose(a, b) for a, b in zip(expected, (components["format"], components["correctness"])))


def test_paper_counts_words_of_the_thought() -> None:
    assert 0.5 == paper([W], [W], length="fixed", length_target=4)["length"]
    assert 0.25 == paper([W], [W], step=100, length="dynamic", length_target=4)["length"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "same"}, "unknown pairs 'same'"),
        ({"scale": "dynamics"}, "did you mean 'dynamic'"),
        ({"granularity": "coarse", "pairs": "any"}, "contradict"),
        ({"switch_step": 0}, "switch_step must be a whole number"),
        (
            {"length_target": 400},
            "length_target 400 has no effect with length 'none'; it needs length: fixed or dynamic",
        ),
        ({"switch_step": 9}, "switch_step 9 has no effect with scale 'original'; it needs scale: two_stage"),
        ({"switch_step": 9, "scale": "dynamic"}, "no effect with scale 'dynamic'"),
        ({"cost": 2}, "'cost' belongs to mode robust"),
    ],
)
def test_a_wrong_option_of_paper_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("toolrl", mode="paper", **options)


def test_paper_takes_what_it_has_by_default_and_drops_the_switch_with_the_schedule() -> None:
    assert make_reward("toolrl", mode="paper", length_target=512, switch_step=30) == make_reward("toolrl", mode="paper")
    options: dict[str, Any] = {"scale": "two_stage", "switch_step": 9, "length": "dynamic", "length_target": 4}
    plain = unscheduled(make_reward("toolrl", mode="paper", **options))
    assert plain == make_reward("toolrl", mode="paper", length="fixed", length_target=4)


def test_paper_needs_the_length_of_the_run_for_a_dynamic_scale() -> None:
    reward = make_reward("toolrl", mode="paper", scale="dynamic")
    with pytest.raises(ConfigError, match="needs the length of the run"):
        reward(response=text(W), ground_truth=text(W), step=1)
    with pytest.raises(ConfigError, match="step 9 lies outside the run of 8 steps"):
        reward(response=text(W), ground_truth=text(W), step=9, total_steps=8)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (write_response([W, A[0]], "hermes", thought="t"), 1.0),
        (write_response([A[0], W], "hermes", thought="t"), 1.0),
        (write_response([W], "hermes", thought="t"), 0.0),
        (write_response([W, A[0], A[0]], "hermes", thought="t"), 0.0),
        (write_response([W, A[0]], "hermes"), 0.0),  # no thought
        (write_response([W, A[0]], "hermes", thought="t")[:-3], 0.0),
    ],
)
def test_tool_n1_pays_for_all_or_nothing(response: str, expected: float) -> None:
    assert expected == make_reward("tool_n1")(response=response, ground_truth=text(W, A[0])).score


USER = """
import dataclasses
import fractions
import math

import numpy as np

from verl_toolrl.rewards import Reward

class Polite:
    def __init__(self, *, word="please"):
        self.word = word
    def __call__(self, *, response, ground_truth, tools=None, step=0, total_steps=None):
        score = float(self.word in response)
        return Reward(score, {"polite": score})

def short(response):
    return -len(response) / 100

def parts(response, ground_truth):
    return {"a": 1.0, "b": 2}

def wrong(response):
    return "good"

def given(response):
    return eval(response)

@dataclasses.dataclass(frozen=True)
class Given:
    late: bool = False
    dialect: str = "react"
    def unscheduled(self):
        return Given(late=True)
    def __call__(self, *, response, ground_truth, tools=None, step=0, total_steps=None):
        return eval(response)

class Whole:
    def __call__(self, trajectory):
        return trajectory.extra["answer"]

def make_nothing():
    return 3

def greedy(response, gold):
    return 1.0

def anything(response, **kwargs):
    return float(kwargs["step"])

def steps(response, step, **kwargs):
    return float(step)
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return str(path)


def test_a_users_function_or_class_is_a_reward(user: str) -> None:
    arguments: dict[str, Any] = {"response": "please", "ground_truth": text(W)}
    assert 1.0 == make_reward(f"{user}:Polite")(**arguments).score
    assert 0.0 == make_reward(f"{user}:Polite", word="thanks")(**arguments).score
    assert {"a": 1.0, "b": 2.0} == make_reward(f"{user}:parts")(**arguments).components
    function = pickle.loads(pickle.dumps(make_reward(f"{user}:short")))
    assert -0.06 == function(**arguments).score


@pytest.mark.parametrize(("name", "at_end"), [("anything", 3.0), ("steps", 10.0)])
def test_a_function_follows_a_schedule_only_if_it_names_the_step(user: str, name: str, at_end: float) -> None:
    reward = make_reward(f"{user}:{name}")
    given_: dict[str, Any] = {"response": "", "ground_truth": "", "step": 3, "total_steps": 10}
    assert (3.0, at_end) == (reward(**given_).score, unscheduled(reward)(**given_).score)
    # The reward manager calls it a second time where the two differ.
    assert (unscheduled(reward) == reward) is (name == "anything")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shrt", {}, "has no 'shrt', did you mean 'short'"),
        ("greedy", {}, "asks for 'gold'"),
        ("Polite", {"wrd": "x"}, "unknown option 'wrd', did you mean 'word'"),
    ],
)
def test_a_users_reward_that_cannot_be_built_says_why(
    user: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward(f"{user}:{name}", **options)


def test_a_users_function_must_return_finite_numbers(user: str) -> None:
    with pytest.raises(ConfigError, match="function must be a finite number, got 'good'"):
        make_reward(f"{user}:wrong")(response="", ground_truth="")


OWN = ("given", "Given")


def answers(user: str, name: str, *texts: str) -> list[Any]:
    """What a reward that evaluates the response makes of some."""
    reward = make_reward(f"{user}:{name}")
    return [reward(response=each, ground_truth="") for each in texts]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("np.float32(0.5)", 0.5),
        ("np.int64(2)", 2.0),
        ("True", 1.0),
        ("fractions.Fraction(1, 4)", 0.25),
        ("{'a': np.float32(0.5), 'b': False}", 0.5),
        ("Reward(np.float32(0.5), {'a': True, 'b': -0.5}, {'seen': 3})", 0.5),
    ],
)
def test_any_real_number_is_a_number(user: str, name: str, answer: str, expected: float) -> None:
    (result,) = answers(user, name, answer)
    assert expected == result.score
    assert {float} == {type(value) for value in (result.score, *result.components.values())}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("math.nan", "function must be a finite number, got nan"),
        ("10 ** 400", "function must be a finite number, got 1000"),
        ("None", "function must be a finite number, got None"),
        ("{'a': 1.0, 'b': math.inf}", "b must be a finite number, got inf"),
        ("Reward(math.inf, {'a': 1.0})", "score must be a finite number, got inf"),
        ("Reward(1.0, {'a': math.nan})", "a must be a finite number, got nan"),
        ("Reward('1', {'a': 1.0})", "score must be a finite number, got '1'"),
    ],
)
def test_an_answer_that_is_not_finite_names_the_reward(user: str, name: str, answer: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"mine.py:{name}: {wrong}"):
        answers(user, name, answer)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ("{'a': 1, 'b': 2}", "{'a': 1}", "the answer lacks 'b'; its first answer had the components a, b"),
        ("{'a': 1}", "{'a': 1, 'c': 2}", "the answer adds 'c'; its first"),
        ("{'a': 1}", "{'c': 2}", "the answer lacks 'a' and adds 'c'"),
        ("{'a': 1}", "1.0", "the answer lacks 'a' and adds 'function'"),
        ("1.0", "Reward(1.0, {'a': 1.0})", "the answer lacks 'function' and adds 'a'"),
    ],
)
def test_the_components_of_the_first_answer_hold_for_all(
    user: str, name: str, first: str, other: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"mine.py:{name}: {message}"):
        answers(user, name, first, other)
    assert 2 == len(answers(user, name, other, other))  # another object has a first answer of its own
    answers(user, name, "{'a': 1, 'b': 2}", "{'b': 1, 'a': 2}")  # the order is free


@pytest.mark.parametrize("name", OWN)
def test_a_pickled_reward_keeps_its_components_and_so_does_the_form_without_schedules(user: str, name: str) -> None:
    reward = make_reward(f"{user}:{name}")
    reward(response="{'a': 1}", ground_truth="")
    for form in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward), unscheduled(reward)):
        with pytest.raises(ConfigError, match="lacks 'a' and adds 'b'"):
            form(response="{'b': 1}", ground_truth="")
    assert reward == pickle.loads(pickle.dumps(reward))


BUILT_TWICE: list[tuple[dict[str, Any], list[list[str] | None]]] = [
    ({"reward": "{user}:given"}, [["a"]]),
    ({"reward": "{user}:Given"}, [["a"]]),
    ({"reward": "tool_n1"}, []),
    (
        {
            "reward": "mix",
            "rewards": {"tool_n1": {}, "x": {"reward": "{user}:Given"}, "y": {"function": "{user}:given"}},
        },
        [["a"], ["a"]],
    ),
]


@pytest.mark.parametrize(("kwargs", "expected"), BUILT_TWICE, ids=lambda value: str(value)[:40])
def test_a_reward_that_is_built_anew_can_be_held_to_what_the_first_answered(
    user: str, kwargs: dict[str, Any], expected: list[list[str] | None]
) -> None:
    first, anew = (configured_reward(json.loads(json.dumps(kwargs).replace("{user}", user))) for _ in range(2))
    unanswered: list[list[str] | None] = [None for _ in expected]
    assert unanswered == answered_components(first)
    expect_components(anew, unanswered, "nobody")  # holds it to nothing
    first(response="{'a': 1}", ground_truth=[])
    assert expected == answered_components(first)
    expect_components(anew, answered_components(first), "the trainer's")
    anew(response="{'a': 2}", ground_truth=[])
    if expected:
        with pytest.raises(ConfigError, match="the answer lacks 'a' and adds 'b'; the trainer's had the components a"):
            unscheduled(anew)(response="{'b': 1}", ground_truth=[])


def test_a_wrong_first_answer_does_not_hold_later_ones_against_what_is_expected(user: str) -> None:
    reward = make_reward(f"{user}:given")
    expect_components(reward, [["a"]], "the trainer's")
    with pytest.raises(ConfigError, match="adds 'b'"):
        reward(response="{'b': 1}", ground_truth="")
    assert 1.0 == reward(response="{'a': 1}", ground_truth="").score


def test_threads_agree_on_the_first_answer(user: str) -> None:
    reward = make_reward(f"{user}:given")

    def kept(number: int) -> bool:
        try:
            return bool(reward(response=f"{{'{'ab'[number % 2]}': 1}}", ground_truth=""))
        except ConfigError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert 100 == sum(pool.map(kept, range(200)))  # those of one of both names


def test_a_class_is_seen_through(user: str) -> None:
    reward = make_reward(f"{user}:Given")
    assert ("react", False) == (make_watcher(reward, {}).dialect, hasattr(reward, "component_names"))
    assert reward != unscheduled(reward) == unscheduled(unscheduled(reward))
    polite = make_reward(f"{user}:Polite")
    assert polite == unscheduled(polite) and not takes_trajectory(polite)


def test_a_class_that_scores_trajectories_is_held_to_the_same(user: str) -> None:
    reward: Any = make_reward(f"{user}:Whole")
    assert takes_trajectory(reward)
    given = Trajectory((Step("x"),), extra={"answer": True})
    assert 1.0 == score_trajectory(reward, given)[0].score
    for answer, message in ((math.nan, "function must be a finite number"), ({"a": 1.0}, "adds 'a'")):
        with pytest.raises(ConfigError, match=message):
            score_trajectory(reward, replace(given, extra={"answer": answer}))


def test_a_factory_that_makes_no_reward_is_refused(user: str) -> None:
    with pytest.raises(ConfigError, match="mine.py:make_nothing: made int, wanted something to call"):
        make_reward(f"{user}:make_nothing")


def test_a_registered_reward_of_a_user_is_checked_too() -> None:
    name = "test_rewards_registered"
    register_reward(name)(lambda **options: lambda *, response, ground_truth: math.nan)
    with pytest.raises(ConfigError, match=f"{name}: function must be a finite number"):
        make_reward(name)(response="", ground_truth="")


def test_a_mix_weighs_its_parts_and_keeps_them_apart(user: str) -> None:
    mix = make_reward(
        "mix",
        rewards={
            "toolrl": {"mode": "robust"},
            "strict": {"reward": "tool_n1", "dialect": "toolrl", "weight": "linear(0 -> 1)"},
            "polite": {"function": f"{user}:short", "weight": 0.5},
        },
    )
    response = text(W)
    result = pickle.loads(pickle.dumps(mix))(response=response, ground_truth=text(W), step=50, total_steps=100)
    assert {
        "toolrl/format": 1.0,
        "toolrl/correctness": 3.0,
        "toolrl/length": 0.0,
        "strict/correctness": 0.5,
        "polite/function": -len(response) / 200,
    } == result.components
    assert math.isclose(result.score, sum(result.components.values()))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "rewards must map names to options"),
        ({"toolrl": {"mode": "robst"}}, "mix: 'toolrl': toolrl: unknown mode 'robst'"),
        ({"a": {"reward": "tool_n1", "function": "x:y"}}, "both 'reward' and 'function'"),
        ({"a": {"reward": "tool_n2"}}, "did you mean 'tool_n1'"),
        ({"toolrl": {"weight": "often"}}, "weight of 'toolrl': 'often' is no schedule"),
        ({"toolrl": 3}, "options of 'toolrl' must be a mapping"),
    ],
)
def test_a_wrong_mix_raises_and_names_the_entry(rewards: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("mix", rewards=rewards)


def test_a_name_can_be_registered_once() -> None:
    assert {"toolrl", "tool_n1", "mix"} <= set(known_rewards())
    with pytest.raises(ConfigError, match="'toolrl' is already registered"):
        register_reward("toolrl")(lambda **options: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("truth", "names"),
    [
        (text(W), ["w"]),
        (write_response([W], "hermes", thought="t"), ["w"]),
        ([{"name": "w", "arguments": {}}], ["w"]),
        ('[{"name": "w", "parameters": {}}]', ["w"]),
        ({"content": None, "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}, ["w"]),
        ("Paris", []),
        ("<think> <tool_call> </think>\n" + text(W).partition("\n")[2], ["w"]),
    ],
)
def test_ground_truths_are_read_in_every_form(truth: Any, names: list[str]) -> None:
    assert names == [call.name for call in parse_ground_truth(truth).calls]


def test_a_ground_truth_is_never_repaired() -> None:
    with pytest.raises(DatasetError, match="not valid JSON"):
        parse_ground_truth(text(W).replace('"c"}}', '"c"},}'))
