"""Options of our trainers: `recipes check` and the trainer refuse the same, the latter before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_toolrl.errors import ConfigError
from verl_toolrl.integrations.trainer_options import option_problem
from verl_toolrl.integrations.watched_buffer import WatchedBuffer

MODES = {
    "toolrl_sync": ReplayBuffer,
    "toolrl_colocate_async": ReplayBufferAsync,
    "toolrl_separate_async": ReplayBufferAsync,
}


def config(**toolrl: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "grpo"},
            "data": {"train_batch_size": 4},
            "actor_rollout_ref": {"rollout": {"n": 4, "val_kwargs": {"n": 2}}},
            "trainer": {
                "default_local_dir": "run/checkpoints",
                "toolrl": toolrl,
                "v1": {
                    "sampler": {
                        "max_off_policy_threshold": None,
                        "max_off_policy_strategy": "drop",
                        "sampler_kwargs": {},
                    }
                },
            },
        }
    )


def build(mode: str = "toolrl_sync", **toolrl: Any) -> Any:
    """Build a trainer as far as its replay buffer, the first thing that verl builds."""
    made = object.__new__(get_trainer_cls(mode))
    made.config = config(**toolrl)
    return made._build_replay_buffer()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alarms", {"no_call": 0.5}),
        ("alarms", {"patience": -1}),
        ("max_lost_share", 2),
        ("max_lost_share", "many"),
        ("poll_interval", 0),
        ("poll_interval", None),
        ("journal_steps", -1),
        ("journal_steps", 1.5),
        ("log_prob_sample", "x"),
    ],
)
def test_what_the_check_refuses_the_trainer_refuses_first(option: str, value: Any) -> None:
    assert option_problem(option, value) is not None
    with pytest.raises(ConfigError, match=f"trainer.toolrl.{option}"):
        build(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("alarms", None), ("log_prob_sample", None), ("alarms", {"entropy": None}), ("journal_steps", 0)],
)
def test_what_the_trainer_accepts_the_check_accepts(option: str, value: Any) -> None:
    build(**{option: value})
    assert option_problem(option, value) is None


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'poll_interval'"):
        build(poll_intervall=1)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_samples_from_verls_buffer_with_lost_sessions_counted(mode: str) -> None:
    buffer = build(mode, poll_interval=0.05)
    assert isinstance(buffer, WatchedBuffer) and isinstance(buffer, MODES[mode]) and 0.05 == buffer.poll_interval


@pytest.mark.parametrize(("waited", "idle"), [(0.5, False), (2.5, True)])
def test_a_short_pause_between_looks_lends_no_devices_after_a_short_wait(waited: float, idle: bool) -> None:
    made = object.__new__(get_trainer_cls("toolrl_separate_async"))
    made.config = config(poll_interval=0.1)
    made.replay_buffer = made._build_replay_buffer()
    made._step_sample_wait_seconds = waited
    assert idle == made._step_had_idle()


def test_what_is_started_is_announced_to_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any, agent_loop_manager: Any) -> None:
        agent_loop_manager.generate_sequences({"uid": ["a", "b"], "__rollout_n__": [1, 7]})

    monkeypatch.setattr(get_trainer_cls("sync"), "fit", start)
    made = object.__new__(get_trainer_cls("toolrl_sync"))
    made.config = config()
    started: list[Any] = []
    made.fit(type("Manager", (), {"generate_sequences": lambda _, batch: started.append(batch)})())
    assert [1, 7, 4] == [made._watch.losses.sessions_of(uid) for uid in ("a", "b", "another")]
    assert 1 == len(started)
