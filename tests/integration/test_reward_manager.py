"""verl's reward path ends in our reward: text, ground truth, step and horizon arrive as they were."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.integrations import trainer
from verl_toolrl.integrations.reward_manager import PATIENCE, hold_workers_to, reward_from_config
from verl_toolrl.rewards import answered_components, make_reward
from verl_toolrl.rewards.function import load_object
from verl_toolrl.rewards.watch import WATCHED

TRUTH = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
WRONG = TRUTH.replace('"x": 1', '"x": 2')


class Characters:
    """A tokenizer with a token a character; id 0 pads."""

    eos_token_id = 3
    pad_token_id = 0
    # [TOOL_CALLS] and [ARGS] are one token each in Mistral's tokenizers, and special.
    special = {3: "</s>", 4: "[TOOL_CALLS]", 5: "[ARGS]"}

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> str:
        def text(number: int) -> str:
            return chr(number) if number not in self.special else "" if skip_special_tokens else self.special[number]

        return "".join(text(int(number)) for number in ids)


def config(**reward_kwargs: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "reward": {"reward_kwargs": reward_kwargs},
            "actor_rollout_ref": {"actor": {"optim": {"total_training_steps": 100}}},
        }
    )


def session(*responses: str, step: int = 0, **more: Any) -> DataProto:
    """One session whose outputs are `responses`, padded as verl pads them; `more` are columns of its row."""
    width = max(map(len, responses))
    ids = torch.tensor([[ord(letter) for letter in text] + [0] * (width - len(text)) for text in responses])
    rows = len(responses)
    columns: dict[str, list[Any]] = {
        "reward_model": [{"style": "rule", "ground_truth": TRUTH}] * rows,
        "data_source": ["rlla"] * rows,
        "extra_info": [{}] * rows,
        "global_steps": [step] * rows,
        "response_len": [len(text) for text in responses],
        **{name: [value] * rows for name, value in more.items()},
    }
    arrays = {key: np.fromiter(values, dtype=object, count=rows) for key, values in columns.items()}
    return DataProto(batch=TensorDict({"responses": ids}, batch_size=rows), non_tensor_batch=arrays)


def score(manager: Any, *responses: str, step: int = 0, **more: Any) -> dict[str, Any]:
    """Score one session whose outputs are `responses`."""
    return asyncio.run(manager.run_single(session(*responses, step=step, **more)))


def manager(**reward_kwargs: Any) -> Any:
    return build(config(**reward_kwargs))


def build(config: DictConfig) -> Any:
    return get_reward_manager_cls("toolrl")(config=config, tokenizer=Characters(), compute_score=None)


def test_a_right_answer_earns_the_maximum_under_verls_keys() -> None:
    result = score(manager(mode="released"), TRUTH)
    assert 4.0 == result["reward_score"]
    assert (1.0, 3.0) == (result["reward_extra_info"]["format"], result["reward_extra_info"]["correctness"])


def test_every_sample_has_the_same_scalar_keys() -> None:
    scored = manager(mode="released")
    infos = [score(scored, text)["reward_extra_info"] for text in (TRUTH, WRONG, "", "no call", "<tool_call>\n{")]
    assert len({tuple(info) for info in infos}) == 1
    assert all(isinstance(value, float) for info in infos for value in info.values())


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"mode": "released", "two_stage": True},
        {"mode": "paper", "length": "dynamic"},
        {"reward": "tool_n1", "dialect": "toolrl"},
        {"reward": "mix", "rewards": {"toolrl": {}, "tool_n1": {"dialect": "toolrl"}}},
    ],
    ids=lambda kwargs: str(kwargs)[:40],
)
def test_the_same_names_are_watched_whatever_the_reward_is(kwargs: dict[str, Any]) -> None:
    """BEHAVIOUR LOCK: dashboards and `verl-toolrl compare` read these names."""
    scored = manager(**kwargs)
    infos = [score(scored, text, step=step)["reward_extra_info"] for text in (TRUTH, WRONG, "") for step in (0, 7)]
    assert len({tuple(info) for info in infos}) == 1
    assert set(WATCHED) | {"score", "unscheduled/score"} <= set(infos[0])
    assert (1.0, 0.0) == (infos[0]["acc"], infos[2]["acc"])


def test_a_scheduled_reward_is_reported_unscheduled_beside() -> None:
    scored = manager(mode="released", two_stage=True)
    infos = [score(scored, TRUTH, step=step)["reward_extra_info"] for step in (0, 40)]
    assert [(1.0, 1.0), (0.5, 3.0)] == [(info["format"], info["correctness"]) for info in infos]
    plain = [(info["unscheduled/format"], info["unscheduled/correctness"]) for info in infos]
    assert [(1.0, 3.0), (1.0, 3.0)] == plain


def own_reward(folder: Path, body: str) -> str:
    (folder / "own_reward.py").write_text(body)
    return f"{folder / 'own_reward.py'}:score"


def test_a_users_function_is_chosen_by_where_it_is(tmp_path: Path) -> None:
    path = own_reward(
        tmp_path, "def score(*, response, step=0):\n    return {'long': len(response) / 2, 'late': step}\n"
    )
    result = score(manager(reward=path), "abcd", step=3)
    assert 5.0 == result["reward_score"]
    info = result["reward_extra_info"]
    assert (2.0, 3.0) == (info["long"], info["late"]) and set(WATCHED) <= set(info)


@pytest.mark.parametrize("name", ["score", "acc", "layout", "unscheduled/score"])
def test_a_component_with_a_name_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    path = own_reward(tmp_path, f"def score(*, response):\n    return {{'fine': 1.0, {name!r}: 0.5}}\n")
    with pytest.raises(ConfigError, match=f"own_reward.py:score: the component '{name}'"):
        score(manager(reward=path), "abcd")


def test_components_that_change_are_refused(tmp_path: Path) -> None:
    path = own_reward(tmp_path, "def score(*, response):\n    return {response: 1.0}\n")
    scored = manager(reward=path)
    score(scored, "a")
    with pytest.raises(ConfigError, match="the answer lacks 'a' and adds 'b'; its first answer had the components a"):
        score(scored, "b")


def test_all_workers_are_held_to_what_the_check_at_the_start_was_answered(tmp_path: Path) -> None:
    path = own_reward(tmp_path, "def score(*, response):\n    return {response or 'a': 1.0}\n")
    given = config(reward=path)
    reward = reward_from_config(given)
    reward(response="", ground_truth="")
    OmegaConf.set_struct(given, True)  # as Hydra makes it
    hold_workers_to(reward, given)
    workers = [build(OmegaConf.create(pickle.loads(pickle.dumps(given)))) for _ in range(2)]
    for worker in workers:
        with pytest.raises(ConfigError, match="adds 'b'; its answer to an empty response, before the run, had .* a "):
            score(worker, "b")
        assert 1.0 == score(worker, "a")["reward_score"]


def test_the_trainer_tells_the_workers_before_verl_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl 0.9.1 loads the rows first, and makes the reward workers from the configuration after that."""
    setup = inspect.getsource(PPOTrainer._setup)
    assert (
        0 < setup.index("self._init_dataloader()") < setup.index("RewardLoopManager(\n            config=self.config")
    )

    given = config(reward=own_reward(tmp_path, "def score(*, response):\n    return {'a': 1.0}\n"))
    (tmp_path / "x.jsonl").write_text("{}\n")
    given.data = {"train_files": str(tmp_path / "x.jsonl"), "val_files": [], "max_prompt_length": 9}

    class Rows:
        def _init_dataloader(self) -> None:
            self.train_dataset = self.val_dataset = [1]

    def scored(files: Any, reward: Any) -> int:
        reward(response="", ground_truth="")
        return 1

    for name in ("check_log_prob_sample", "estimator_options", "check_rollout"):
        monkeypatch.setattr(trainer, name, lambda *_: None)
    monkeypatch.setattr(trainer, "check_files", scored)
    made: Any = object.__new__(type("Trainer", (trainer.ToolRLTrainerMixin, Rows), {}))
    made.config, made.tokenizer = given, None
    made._init_dataloader()
    assert [["a"]] == answered_components(build(given).reward)


@pytest.mark.parametrize("column", ['[{"name": "f"}]', [{"type": "function", "function": {"name": "f"}}]], ids=type)
def test_the_tools_of_a_row_in_a_column_of_their_own_reach_the_reward(tmp_path: Path, column: Any) -> None:
    path = own_reward(tmp_path, "def score(*, response, tools):\n    return float(tools[0]['name'] == 'f')\n")
    result = score(manager(reward=path), TRUTH, tools=column)
    assert (1.0, 1.0) == (result["reward_score"], result["reward_extra_info"]["calls/tools_known"])
    unknown = score(manager(mode="released"), TRUTH, tools='[{"name": "g"}]')["reward_extra_info"]
    assert 1.0 == unknown["calls/unknown_tool"]


@pytest.mark.parametrize(
    "kwargs", [{"dialect": "mistral"}, {"mode": "released", "watch": {"dialect": "mistral"}}], ids=str
)
def test_calls_that_mistral_writes_with_special_tokens_are_read(kwargs: dict[str, Any]) -> None:
    info = score(manager(**kwargs), '\4f\5{"x": 1}\3')["reward_extra_info"]
    assert (1.0, 1.0, 0.0) == (info["acc"], info["calls/count"], info["calls/missed"])


def test_a_reward_that_waits_does_not_hold_the_loop(tmp_path: Path) -> None:
    """Two samples: the first reward returns only when the second is scored, which needs the loop to go on."""
    path = own_reward(
        tmp_path,
        "import threading\nother = threading.Event()\n"
        "def score(*, response):\n"
        "    other.set() if response == 'second' else other.wait(60)\n"
        "    return float(other.is_set())\n",
    )
    scored = manager(reward=path)

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(*(scored.run_single(session(text)) for text in ("first", "second")))

    assert [1.0, 1.0] == [result["reward_score"] for result in asyncio.run(both())]


def test_a_reward_that_never_answers_is_a_failure_and_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import threading\nend = threading.Event()\ndef score(*, response):\n    end.wait(60)\n    return 1.0\n"
    path = own_reward(tmp_path, body)
    scored = manager(reward=path)
    monkeypatch.setattr("verl_toolrl.integrations.reward_manager.PATIENCE", 0.05)

    async def never() -> None:
        try:
            await scored.run_single(session("x"))
        finally:
            load_object(path).__globals__["end"].set()  # lets the thread go

    with pytest.raises(InfrastructureError, match="has not answered"):
        asyncio.run(never())


def test_waiting_for_a_thread_is_not_the_rewards_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread and two rewards, each of which takes less than the patience and both together more."""
    body = "import threading\nends = {text: threading.Event() for text in ('first', 'second')}\n"
    path = own_reward(tmp_path, body + "def score(*, response):\n    ends[response].wait(60)\n    return 1.0\n")
    monkeypatch.setattr("verl_toolrl.integrations.reward_manager.THREADS", 1)
    scored, ends = manager(reward=path), load_object(path).__globals__["ends"]

    async def both() -> list[dict[str, Any]]:
        loop, passed = asyncio.get_running_loop(), 0.0
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + passed)
        tasks = [asyncio.ensure_future(scored.run_single(session(text))) for text in ends]
        for end in ends.values():
            await asyncio.sleep(0.2)  # real time, for the thread to begin; more of it changes nothing
            passed += 0.9 * PATIENCE
            await asyncio.sleep(0)
            end.set()
        return await asyncio.gather(*tasks)

    assert [1.0, 1.0] == [result["reward_score"] for result in asyncio.run(both())]


def test_a_reward_that_hangs_gives_its_thread_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import threading\nend = threading.Event()\n"
    body += "def score(*, response):\n    return 1.0 if response == 'quick' else float(end.wait(60))\n"
    path = own_reward(tmp_path, body)
    monkeypatch.setattr("verl_toolrl.integrations.reward_manager.THREADS", 1)
    scored = manager(reward=path)

    async def both() -> dict[str, Any]:
        try:
            with monkeypatch.context() as patched:
                patched.setattr("verl_toolrl.integrations.reward_manager.PATIENCE", 0.05)
                with pytest.raises(InfrastructureError, match="has not answered"):
                    await scored.run_single(session("slow"))
            return await scored.run_single(session("quick"))
        finally:
            load_object(path).__globals__["end"].set()

    assert 1.0 == asyncio.run(both())["reward_score"]


def test_a_time_out_that_the_reward_itself_raises_is_told_as_its_own(tmp_path: Path) -> None:
    path = own_reward(tmp_path, "def score(*, response):\n    raise TimeoutError('the judge took too long')\n")
    with pytest.raises(TimeoutError, match="the judge took too long"):
        score(manager(reward=path), "x")


HORIZONS = [
    pytest.param(None, 100, 100, id="no trainer named"),
    pytest.param("sync", 100, 100, id="sync"),
    pytest.param("toolrl_colocate_async", 100, 100, id="colocated"),
    pytest.param("separate_async", 400, 100, id="verl's own separate"),
    pytest.param("toolrl_separate_async", 400, 100, id="ours"),
    pytest.param("toolrl_sync", -1, None, id="not known yet"),
]


@pytest.mark.parametrize(("mode", "updates", "steps"), HORIZONS)
def test_a_schedule_runs_over_global_steps_and_not_over_updates(
    mode: str | None, updates: int, steps: int | None
) -> None:
    options = {"sync": {}, "colocate_async": {"num_warmup_batches": 1}, "separate_async": {"parameter_sync_step": 4}}
    cfg = OmegaConf.merge(
        config(mode="released"),
        {"actor_rollout_ref": {"actor": {"optim": {"total_training_steps": updates}}}},
        {"trainer": {"v1": {"trainer_mode": mode, **options}}} if mode else {},
    )
    assert isinstance(cfg, DictConfig)
    made = get_reward_manager_cls("toolrl")(config=cfg, tokenizer=Characters(), compute_score=None)
    assert steps == made.total_steps


def test_verl_counts_updates_as_our_horizon_assumes() -> None:
    """BEHAVIOUR LOCK: verl multiplies the horizon of the optimizer by the mode's `parameter_sync_step`."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    source = inspect.getsource(PPOTrainer)
    assert "optim_total_training_steps = total_training_steps * self.parameter_sync_step" in source
    assert 'self.config.trainer.v1.get(self.trainer_mode, {}).get("parameter_sync_step", 1)' in source


HOSTILE = [
    "<tool_call>" * 2000,
    "{" * 20_000,
    '{"a":' * 8_000,
    "<think>" * 5_000 + "</think>" * 5_000,
    "\\u0000" * 9_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:10])
@pytest.mark.parametrize("kwargs", [{}, {"mode": "released"}, {"reward": "tool_n1"}], ids=str)
@pytest.mark.timeout(30)
def test_hostile_text_is_scored_like_any_other(kwargs: dict[str, Any], text: str) -> None:
    info = score(manager(**kwargs), text)["reward_extra_info"]
    assert all(math.isfinite(value) for value in info.values()) and 0.0 == info["acc"]


def test_the_last_output_of_a_session_is_scored_without_its_padding() -> None:
    assert 4.0 == score(manager(mode="released"), TRUTH + " and then something longer", TRUTH)["reward_score"]


@pytest.mark.parametrize("step", [0, 29, 30, 104])
def test_the_step_is_verls_global_step(step: int) -> None:
    # two_stage: before step 30 correctness lies in [-1, 1], from then on in [-3, 3] and format in [0, 0.5].
    reward = make_reward("toolrl", mode="released", two_stage=True)
    expected = reward(response=WRONG, ground_truth=TRUTH, step=step).score
    assert expected == score(manager(mode="released", two_stage=True), WRONG, step=step)["reward_score"]


def test_an_unknown_option_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="equal_max"):
        manager(mode="released", equal_maxx=True)


def test_the_configured_reward_pickles_into_a_worker() -> None:
    reward = pickle.loads(pickle.dumps(manager(mode="released").reward))
    assert 4.0 == reward(response=TRUTH, ground_truth=TRUTH).score
