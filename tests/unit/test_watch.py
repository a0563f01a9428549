"""What is watched: the numbers of single responses, case by case, and that the names never change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_toolrl.errors import ConfigError
from verl_toolrl.formats import write_response
from verl_toolrl.integrations.response_text import response_text
from verl_toolrl.integrations.reward_info import (
    group_metrics,
    refuse_taken_names,
    reported_components,
    reward_info,
    training_metrics,
)
from verl_toolrl.rewards import (
    Reward,
    component_names,
    configured_reward,
    configured_watcher,
    make_reward,
    reads_special_tokens,
    unscheduled,
)
from verl_toolrl.rewards.watch import WATCHED, Watcher
from verl_toolrl.trajectory import Step, ToolCall, Trajectory

TOOLS = [
    {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
    {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
]
PARIS = ToolCall("weather", {"city": "Paris", "days": 2})
ROME = ToolCall("weather", {"city": "Rome", "days": 2})
CET = ToolCall("time", {"zone": "CET"})


def text(*calls: ToolCall) -> str:
    return write_response(calls, thought="one two three", response=None if calls else "Hello.")


def seen(response: str, *truth: ToolCall, tools: Any = TOOLS, **options: Any) -> set[str]:
    """Names of the shares that are 1, without what the row itself says."""
    numbers = Watcher(**options)(response=response, ground_truth=text(*truth), tools=tools)
    plain = ("layout", "calls/count", "calls/wanted", "calls/tools_known", "thought/words")
    return {name.removeprefix("calls/") for name, value in numbers.items() if value and name not in plain}


UNKNOWN = ToolCall("wether", PARIS.arguments)
SHORT_ROME = ToolCall("weather", {"city": "Rome"})
BROKEN = "<think> a </think>\n<tool_call>\n{\n</tool_call>"
FOREIGN = "<think> a </think>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
CASES: list[tuple[str, str, tuple[ToolCall, ...], set[str]]] = [
    ("right", text(PARIS), (PARIS,), {"acc"}),
    ("right in another order", text(CET, PARIS), (PARIS, CET), {"acc"}),
    ("right to be silent", text(), (), {"acc"}),
    ("a call where none is wanted", text(PARIS), (), {"needless"}),
    ("an unreadable call where none is wanted", BROKEN, (), {"needless", "unreadable"}),
    ("no call where one is wanted", text(), (PARIS,), {"missed"}),
    ("empty", "", (PARIS,), {"missed"}),
    ("one of two", text(PARIS), (PARIS, ROME), {"missed"}),
    ("twice", text(PARIS, PARIS), (PARIS,), {"surplus"}),
    ("another tool", text(CET), (PARIS,), {"surplus", "missed"}),
    ("a tool that is not on offer", text(UNKNOWN), (PARIS,), {"unknown_tool", "surplus", "missed"}),
    ("an argument is missing", text(ToolCall("weather", {"city": "Paris"})), (PARIS,), {"missing_argument"}),
    ("an argument too many", text(ToolCall("weather", {**PARIS.arguments, "x": 1})), (PARIS,), {"extra_argument"}),
    ("a wrong type", text(ToolCall("weather", {"city": "Paris", "days": "two"})), (PARIS,), {"wrong_type"}),
    ("a wrong value", text(ROME), (PARIS,), set()),
    # Paired by what they share, so neither call lacks anything.
    ("pairs are the best ones", text(SHORT_ROME, PARIS), (PARIS, SHORT_ROME), {"acc"}),
    ("repaired", text(PARIS).replace("}}", ",}}"), (PARIS,), {"acc", "repaired"}),
    ("another dialect", FOREIGN, (PARIS,), {"foreign", "missed"}),
]


@pytest.mark.parametrize(
    ("response", "truth", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_seen_in_a_response(response: str, truth: tuple[ToolCall, ...], expected: set[str]) -> None:
    assert expected == seen(response, *truth)


def test_counts_are_numbers_a_response() -> None:
    numbers = Watcher()(response=text(PARIS, CET), ground_truth=text(PARIS))
    assert (2.0, 3.0, 1.0, 0.0) == tuple(
        numbers[name] for name in ("calls/count", "thought/words", "calls/wanted", "calls/tools_known")
    )


@pytest.mark.parametrize(
    ("response", "expected"),
    [(text(PARIS), 1.0), (text(), 1.0), ("", 0.0), (text(PARIS) + " and more", 0.0), (BROKEN, 0.0), ("Hello.", 0.0)],
    ids=["call", "answer", "empty", "leftover", "unreadable", "no tags"],
)
def test_the_layout_is_right_only_from_end_to_end(response: str, expected: float) -> None:
    assert expected == Watcher()(response=response, ground_truth=text(PARIS))["layout"]


def test_without_schemas_nothing_is_said_about_them() -> None:
    assert {"acc"} == seen(text(ToolCall("x", {"y": "z"})), ToolCall("x", {"y": "z"}), tools=None)


@settings(deadline=None, max_examples=60)
@given(
    st.text(max_size=80) | st.sampled_from([case[1] for case in CASES]), st.sampled_from([case[2] for case in CASES])
)
def test_every_response_has_the_same_names_and_shares_are_shares(response: str, truth: tuple[ToolCall, ...]) -> None:
    numbers = Watcher()(response=response, ground_truth=text(*truth), tools=TOOLS)
    assert WATCHED == tuple(numbers)
    counts = ("calls/count", "thought/words")
    assert all(value in (0.0, 1.0) for name, value in numbers.items() if name not in counts)


def test_a_trajectory_is_watched_over_all_its_steps() -> None:
    steps = (
        Step(text(PARIS), calls=(PARIS,)),
        Step(text(ToolCall("nope", {})), calls=(ToolCall("nope", {}),)),
        Step("?", unparsed=("cut off",)),
        Step(text()),
    )
    numbers = Watcher().trajectory(Trajectory(steps), ground_truth="It is warm.", tools=TOOLS)
    assert (3.0, 1.0, 1.0, 0.0, 9.0) == tuple(
        numbers[f"{name}"]
        for name in ("calls/count", "calls/unreadable", "calls/unknown_tool", "calls/needless", "thought/words")
    )
    assert set(WATCHED) - set(numbers) == {"acc"}


REWARDS: list[dict[str, Any]] = [
    {},
    {"mode": "released", "dynamic_scale": True},
    {"mode": "paper", "scale": "dynamic"},
    {"reward": "tool_n1", "dialect": "toolrl"},
    {"reward": "mix", "rewards": {"toolrl": {"mode": "released"}, "tool_n1": {"dialect": "toolrl", "weight": 0.5}}},
]


@pytest.mark.parametrize("kwargs", REWARDS, ids=lambda kwargs: str(kwargs)[:40])
def test_components_are_known_before_anything_is_scored(kwargs: dict[str, Any]) -> None:
    reward = configured_reward(kwargs)
    result = reward(response=text(PARIS), ground_truth=text(PARIS), step=1, total_steps=10)
    assert component_names(reward) == tuple(result.components)
    assert list(result.components) == reported_components(reward_info(result, result, {"acc": 1.0}))


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"mode": "released", "two_stage": True}, 2.5),
        ({"mode": "released", "dynamic_scale": True}, 2.5),
        ({"mode": "paper", "scale": "two_stage"}, 2.5),
        ({"mode": "paper", "scale": "dynamic"}, 2.5),
        # The weight of the end: 0.5 * format + 1.5.
        ({"weights": {"format": "linear(2 -> 0.5)"}}, 2.0),
        # Three words of six, the target of the end.
        ({"weights": {"length": 1}, "length_target": "linear(3 -> 6)"}, 3.0),
        ({"reward": "mix", "rewards": {"toolrl": {"weight": "linear(0 -> 1)"}}}, 2.5),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_scheduled_reward_without_its_schedule_is_the_same_at_every_step(
    kwargs: dict[str, Any], expected: float
) -> None:
    # One of two values is wrong: format 1, correctness 3/4 of the way from -3 to 3.
    reward = configured_reward(kwargs)
    plain = unscheduled(reward)
    given: dict[str, Any] = {"response": text(ROME), "ground_truth": text(PARIS), "total_steps": 100}
    assert {expected} == {plain(**given, step=step).score for step in (0, 1, 50, 100)}
    assert len({reward(**given, step=step).score for step in (0, 1, 50, 100)}) > 1


@pytest.mark.parametrize("kwargs", [{}, {"mode": "released", "coarse": True}, {"reward": "tool_n1"}], ids=str)
def test_a_reward_without_a_schedule_is_equal_to_itself_without(kwargs: dict[str, Any]) -> None:
    assert configured_reward(kwargs) == unscheduled(configured_reward(kwargs))


def test_a_function_that_asks_for_the_step_is_asked_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def score(*, response, step=0, total_steps=None):\n    return step / total_steps\n"
    )
    reward = make_reward(f"{tmp_path / 'own.py'}:score")
    given: dict[str, Any] = {"response": "", "ground_truth": "", "step": 3, "total_steps": 10}
    assert (0.3, 1.0) == (reward(**given).score, unscheduled(reward)(**given).score)


def test_a_schedule_that_the_run_never_finishes_is_reported_with_its_last_value() -> None:
    """BEHAVIOUR LOCK: verl_toolrl/rewards/README.md says so of `reward/unscheduled/...`."""
    given: dict[str, Any] = {"response": text(PARIS), "ground_truth": text(PARIS), "step": 10, "total_steps": 10}
    own = unscheduled(configured_reward({"weights": {"format": "step(1 @ 0, 0.25 @ 1000)"}}))
    assert 0.25 == own(**given).components["format"]
    # At step 10 of 10 the released schedule gives 2 - 10 / 150; without it 1.
    assert 1.0 == unscheduled(configured_reward({"mode": "released", "dynamic_scale": True}))(**given).score - 3
    # 3 of 512 words, and not of the 1,024 of the paper's dynamic target.
    paper = unscheduled(configured_reward({"mode": "paper", "length": "dynamic"}))
    assert 3 / 512 == paper(**given).components["length"]


def test_a_watcher_reads_as_the_reward_does_and_the_recipe_wins() -> None:
    def watcher(kwargs: dict[str, Any]) -> Watcher:
        return configured_watcher(kwargs, configured_reward(kwargs))

    assert "hermes" == watcher({"dialect": "hermes"}).dialect
    assert "hermes" == watcher({"reward": "mix", "rewards": {"tool_n1": {}}}).dialect
    assert "qwen" == watcher({"mode": "released", "chat_family": "qwen"}).chat_family
    assert "react" == watcher({"watch": {"dialect": "react"}}).dialect
    with pytest.raises(ConfigError, match="did you mean 'dialect'"):
        watcher({"watch": {"dialct": "react"}})


@pytest.mark.parametrize("name", ["score", *WATCHED, "toolrl_step_rewards", "unscheduled/x", "seen/calls"])
def test_a_component_cannot_have_a_name_under_which_something_else_is_reported(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"the component '{name}' has a name .* score, acc, layout, .*seen/"):
        refuse_taken_names("mine.py:score", ["format", name])


def test_a_component_may_have_any_other_name() -> None:
    refuse_taken_names("x", ["function", "format", "calls", "accuracy", "polite/score"])
    refuse_taken_names("x", ["acc"], trajectory=True)  # of trajectories only the reward knows it
    with pytest.raises(ConfigError, match="'layout'"):
        refuse_taken_names("x", ["acc", "layout"], trajectory=True)


class MistralTokens:
    """A tokenizer of whole words: 0 pads, 1 and 2 end a response; those in square brackets are special."""

    words = ("<pad>", "</s>", "<eot>", "[TOOL_CALLS]", "weather", "[ARGS]", '{"city": "Paris", "days": 2}')
    eos_token_id = [1, 2]
    pad_token_id = 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in ids if not skip_special_tokens or self.words[i][0] not in "<[")


MISTRAL: list[tuple[dict[str, Any], float]] = [
    ({"dialect": "mistral"}, 1.0),
    ({"reward": "tool_n1", "dialect": "mistral", "require_thought": False}, 1.0),
    ({"mode": "released", "watch": {"dialect": "mistral"}}, 1.0),
    ({"reward": "mix", "rewards": {"tool_n1": {"dialect": "hermes"}, "toolrl": {"dialect": "mistral"}}}, 0.0),
    ({"reward": "mix", "rewards": {"mix": {"rewards": {"toolrl": {"dialect": "mistral"}}}}}, 0.0),
    ({"dialect": "hermes"}, 0.0),
]


@pytest.mark.parametrize(("kwargs", "acc"), MISTRAL, ids=lambda value: str(value)[:40])
def test_calls_that_are_written_with_special_tokens_are_read(kwargs: dict[str, Any], acc: float) -> None:
    reward = configured_reward(kwargs)
    watcher = configured_watcher(kwargs, reward)
    special = reads_special_tokens(reward, watcher)
    assert special is ("mistral" in str(kwargs))
    response = response_text(MistralTokens(), [3, 4, 5, 6, 2, 1], special_tokens=special)
    if special:
        assert '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}' == response
    # The mix is watched as its first part reads, in another dialect.
    assert acc == watcher(response=response, ground_truth=text(PARIS))["acc"]


def test_training_metrics_are_means_and_ranges_of_what_is_trained_on() -> None:
    def info(score: float, count: float) -> dict[str, float]:
        plain = {f"unscheduled/{name}": score for name in ("score", "format")}
        return {"score": score, "format": score, **plain, "acc": 1 - score, "calls/count": count}

    infos = [info(1.0, 2.0), info(0.0, 1.0)]
    metrics = training_metrics(infos)
    assert (0.5, 1.0, 0.0) == tuple(metrics[f"reward/format/{kind}"] for kind in ("mean", "max", "min"))
    assert (0.5, 1.5, 0.5) == tuple(
        metrics[key] for key in ("reward/acc/mean", "calls/count/mean", "reward/unscheduled/format/mean")
    )
    assert {} == training_metrics([])


def test_a_component_is_logged_under_reward_whatever_its_name_begins_with() -> None:
    components = {"calls/polite": 1.0, "thought/short": 0.5}
    info = reward_info(Reward(1.5, components), Reward(1.5, components), {"calls/count": 2.0, "thought/words": 3.0})
    keys = {key.rpartition("/")[0] for key in training_metrics([info])}
    plain = {f"reward/unscheduled/{name}" for name in ("score", *components)}
    own = {f"reward/{name}" for name in ("score", *components)}
    assert keys == {*own, *plain, "calls/count", "thought/words"}


def test_groups_that_teach_nothing_are_counted() -> None:
    scores = [("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0), ("c", 0.5), ("d", 2.0), ("d", 2.0)]
    # Two of the three groups that can be compared scored alike; one of four is alone.
    assert {"groups/count": 4.0, "groups/zero_variance": 2 / 3, "groups/lone": 0.25} == group_metrics(scores)
    # The same keys where nothing can be compared.
    assert {"groups/count": 1.0, "groups/zero_variance": 0.0, "groups/lone": 1.0} == group_metrics([("a", 1.0)])
    assert {"groups/count": 0.0, "groups/zero_variance": 0.0, "groups/lone": 0.0} == group_metrics([])


@pytest.mark.parametrize(
    "truth", ['{"answer": 42}', "[1, 2]", '["Paris"]', 42, 3.5, {"target": 24}, '{"name": "f"}'], ids=repr
)
def test_a_ground_truth_that_is_no_calls_compares_with_nothing(truth: Any) -> None:
    numbers = Watcher()(response=text(PARIS), ground_truth=truth, tools=TOOLS)
    assert WATCHED == tuple(numbers)
    assert {"layout": 1.0, "calls/count": 1.0, "calls/tools_known": 1.0, "thought/words": 3.0} == {
        name: value for name, value in numbers.items() if value
    }
