"""What lost sessions do to the gradient, to the run and to validation; with verl's own advantages and loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl", reason="needs verl")

import torch
import transfer_queue
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_toolrl.errors import AuthorError, ConfigError, InfrastructureError
from verl_toolrl.integrations import lost_share, rollout_watch
from verl_toolrl.integrations.lost_sessions import AUTHOR, PARTITION, Groups
from verl_toolrl.integrations.rollout_watch import RolloutWatch, journal_folder
from verl_toolrl.integrations.session_keys import last_outputs, sessions_by_group
from verl_toolrl.integrations.step_sessions import StepSession
from verl_toolrl.integrations.watched_buffer import watch_buffer


def config(estimator: str = "grpo", rollouts: int = 4, **toolrl: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "algorithm": {"adv_estimator": estimator},
            "actor_rollout_ref": {"rollout": {"n": rollouts, "val_kwargs": {"n": 2}}},
            "trainer": {"default_local_dir": "run/checkpoints", "toolrl": toolrl},
        }
    )


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """TransferQueue's part, which needs a cluster: nothing was reported, and what is cleared is noted."""
    keys: list[str] = []
    reported = {"a_1": {"reason": "tool search: infra_error: refused"}}
    monkeypatch.setattr(lost_share, "take_lost", lambda prompts: reported)
    monkeypatch.setattr(rollout_watch.tq, "kv_clear", lambda keys, partition_id, into=keys: into.extend(keys))
    return keys


def watch(cfg: DictConfig) -> RolloutWatch:
    return RolloutWatch(cfg, cfg.trainer.toolrl)


def batch(keys: Sequence[str]) -> KVBatchMeta:
    return KVBatchMeta(keys=list(keys), tags=[{"seq_len": 4} for _ in keys], partition_id="train")


WHOLE = [f"a_{i}_0" for i in range(4)]
PARTLY = [f"b_{i}_0" for i in (0, 2, 3)]
ALONE = ["c_3_0"]


def test_several_outputs_of_a_session_are_one_session_by_its_last() -> None:
    keys = ["a_0_0", "a_1_2", "a_1_10", "b_0_0", "a_1_0"]
    assert {"a": {"0", "1"}, "b": {"0"}} == sessions_by_group(keys)
    assert ["a_0_0", "a_1_10", "b_0_0"] == [keys[position] for position in last_outputs(keys)]


def test_a_group_with_one_survivor_is_dropped_and_the_others_stay(cleared: list[str]) -> None:
    # Two outputs of one session are one survivor.
    alone = [*ALONE, "d_0_0", "d_0_1"]
    kept = watch(config()).keep_groups(batch([*WHOLE, *PARTLY, *alone]))
    assert [*WHOLE, *PARTLY] == kept.keys and alone == cleared


@pytest.mark.parametrize("estimator", ["gae", "reinforce_plus_plus"])
def test_an_estimator_that_compares_no_group_keeps_them_all(cleared: list[str], estimator: str) -> None:
    kept = watch(config(estimator)).keep_groups(batch([*WHOLE, *ALONE]))
    assert [*WHOLE, *ALONE] == kept.keys and [] == cleared


def test_single_samples_are_no_small_groups(cleared: list[str]) -> None:
    keys = ["a_0_0", "b_0_0", "c_0_0"]
    assert keys == watch(config(rollouts=1)).keep_groups(batch(keys)).keys


def test_a_row_that_asks_for_a_single_session_is_no_small_group(cleared: list[str]) -> None:
    made = watch(config())
    made.losses.announce({"uid": ["c"], "__rollout_n__": [1]})
    assert [*WHOLE, *ALONE] == made.keep_groups(batch([*WHOLE, *ALONE])).keys


def test_a_step_without_a_group_of_two_stops_the_run(cleared: list[str]) -> None:
    made = watch(config(max_lost_share=1.0))
    made.losses.arrived("train", ["c", "d"], ALONE)
    with pytest.raises(InfrastructureError, match=r"no group has two sessions left; 7 of 8 .*1 x tool search"):
        made.keep_groups(batch(ALONE))


def test_a_step_logs_what_it_lost_and_the_next_begins_anew(cleared: list[str]) -> None:
    made = watch(config(max_lost_share=0.5, journal_steps=0))
    made.losses.failed({"x"}, wanted=3)
    made.losses.arrived("train", ["a", "b"], [*WHOLE, *PARTLY])
    numbers = made.after_step([], {}, 1)
    assert (5 / 12, 5.0, 0.0) == tuple(
        numbers[f"rollout/{name}"] for name in ("lost_share", "lost_sessions", "dropped_groups")
    )
    assert "rollout/lost_share" not in made.after_step([], {}, 2)


def test_the_alarm_of_equal_scores_looks_at_the_number_in_the_log(cleared: list[str]) -> None:
    made = watch(config(alarms={"patience": 1}, journal_steps=0))
    sessions = [StepSession("a", number, 1.0, 3, {}, {}) for number in range(2)]
    numbers = made.after_step(sessions, {"groups/zero_variance": 1.0}, 1)
    assert 1.0 == numbers["alarm/zero_variance_share"] and "rollout/zero_variance_share" not in numbers
    # Where no group has two sessions the log has a 0, which says nothing.
    alone = {"groups/zero_variance": 0.0, "groups/lone": 1.0}
    assert 1.0 == made.after_step(sessions[:1], alone, 2)["alarm/zero_variance_share"]


@pytest.mark.parametrize(
    ("info", "alarm"),
    [
        pytest.param({"calls/count": 0.0, "calls/unreadable": 0.0}, "no_call_share", id="no call"),
        pytest.param({"calls/count": 1.0, "calls/unreadable": 1.0}, "invalid_call_share", id="nonsense"),
    ],
)
def test_a_run_of_single_turns_raises_the_alarms_of_calls(
    cleared: list[str], capsys: pytest.CaptureFixture[str], info: dict[str, float], alarm: str
) -> None:
    """There are no trajectories, only what the reward watched; for `steps` there is no number."""
    made = watch(config(alarms={"patience": 2, "steps_ratio": 3.0}, journal_steps=0))
    sessions = [StepSession("a", number, 1.0, 3, {"reward_extra_info": info}, {}) for number in range(2)]
    first, second = (made.after_step(sessions, {}, step) for step in (1, 2))
    assert (0.0, 1.0) == (first[f"alarm/{alarm}"], second[f"alarm/{alarm}"])
    assert 1.0 == second[f"rollout/{alarm}"] and first.keys() == second.keys() and "alarm/steps" not in first
    out = capsys.readouterr().out
    assert (1, 1) == (out.count(f"ALARM {alarm}"), out.count("step 1: trainer.toolrl.alarms.steps_ratio"))


@pytest.mark.parametrize("options", [{"max_lost_share": 1.5}, {"max_lost_share": "x"}, {"journal_steps": -1}])
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        watch(config(**options))


@pytest.mark.parametrize(
    ("checkpoints", "wanted"),
    [("run/checkpoints", "run/trajectories"), ("out/mine", "out/mine/trajectories")],
)
def test_every_run_has_trajectories_of_its_own(checkpoints: str, wanted: str) -> None:
    cfg = config()
    cfg.trainer.default_local_dir = checkpoints
    assert wanted == str(journal_folder(cfg))


# --- the gradient -----------------------------------------------------------------------------------------------------

_LENGTH = 5


def gradient(keys: Sequence[str], rewards: dict[str, float]) -> dict[str, torch.Tensor]:
    """Gradient of verl's loss with respect to each trajectory's log-probabilities, summed over tokens, not averaged."""
    generator = torch.Generator().manual_seed(0)
    everything = {key: torch.randn(_LENGTH, generator=generator) for key in sorted(rewards)}
    log_prob = torch.stack([everything[key] for key in keys]).requires_grad_()
    mask = torch.ones(len(keys), _LENGTH)
    scores = torch.zeros(len(keys), _LENGTH)
    scores[:, -1] = torch.tensor([rewards[key] for key in keys])
    tensors = TensorDict(
        {"token_level_rewards": scores, "token_level_scores": scores, "response_mask": mask}, batch_size=len(keys)
    )
    data = DataProto(batch=tensors, non_tensor_batch={"uid": np.array([key[0] for key in keys], dtype=object)})
    data = compute_advantage_for_multi_trajectories(data, batch_keys=list(keys), adv_estimator="grpo")
    clip = SimpleNamespace(clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=None, global_batch_info={})
    clip.get = lambda name, default=None: getattr(clip, name, default)
    loss, _ = compute_policy_loss_vanilla(
        log_prob.detach() + 0.01, log_prob, data.batch["advantages"], mask, config=clip
    )
    (loss * mask.sum()).backward()
    assert log_prob.grad is not None
    return dict(zip(keys, log_prob.grad))


def test_the_gradient_of_whole_groups_is_untouched_by_sessions_that_others_lost(cleared: list[str]) -> None:
    everyone = [f"{group}_{i}_0" for group in "abc" for i in range(4)]
    rewards = {key: float(number % 3) for number, key in enumerate(everyone)}
    before = gradient(everyone, rewards)
    left = [*WHOLE, *PARTLY, *ALONE]  # b lost one session, c three
    kept = watch(config()).keep_groups(batch(left))
    after = gradient(kept.keys, rewards)
    assert all(torch.equal(before[key], after[key]) for key in WHOLE)
    # The survivors of b are compared with each other: as if the group had had three members.
    alone = gradient(PARTLY, rewards)
    assert all(torch.equal(alone[key], after[key]) for key in PARTLY)
    # What would happen otherwise: a lost session that counts as 0 moves the others of its group.
    as_zero = gradient([*WHOLE, "b_0_0", "b_1_0", "b_2_0", "b_3_0"], {**rewards, "b_1_0": -5.0})
    assert not any(torch.equal(as_zero[key], after[key]) for key in PARTLY)


def test_a_lone_survivor_would_have_trained_on_its_raw_reward() -> None:
    """Why small groups are dropped: verl's GRPO takes the mean of a group of one for 0."""
    rewards = {"c_3_0": 3.0}
    assert gradient(ALONE, rewards)["c_3_0"].abs().sum() > 0


# --- validation -------------------------------------------------------------------------------------------------------


def validate(*batches: Sequence[str], **toolrl: Any) -> dict[str, float]:
    """Validate with 2 prompts a batch, 2 samples a prompt."""
    made = watch(config(**toolrl))
    for _ in range(2):  # a second one counts anew
        with made.validation() as counts:
            for keys in batches:
                made.losses.arrived("val", ["a", "b"], keys)
    return counts


def test_validation_says_how_many_sessions_its_figures_miss(cleared: list[str]) -> None:
    counts = validate(["a_0_0", "a_1_0", "b_0_0", "b_1_0"], ["a_0_0", "a_1_0", "b_1_0"])
    assert {"val-aux/lost_sessions": 1.0, "val-aux/lost_share": 1 / 8} == counts


@pytest.mark.parametrize("batches", [([], []), (["a_0_0"], ["b_0_0"])])
def test_a_validation_that_lost_too_many_stops_the_run(cleared: list[str], batches: Any) -> None:
    with pytest.raises(InfrastructureError, match="validation: .* sessions are lost"):
        validate(*batches, max_lost_share=0.5)


# --- authors' mistakes ------------------------------------------------------------------------------------------------

MISTAKE = {"u_1": {"reason": "DatasetError: no tool 'sel'", "global_steps": 7, "kind": AUTHOR}}
LOST = {"a_1": {"reason": "tool search: refused", "global_steps": 7, "kind": "infrastructure"}}


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_an_authors_mistake_in_a_session_stops_the_run_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    """Whatever else runs: nothing is over yet, and nothing above the limit."""
    running = {"u": {"is_prompt": True, "status": "running", "global_steps": 7}}
    listed = {"train": running, PARTITION: {**LOST, **MISTAKE}}
    monkeypatch.setattr(transfer_queue, "kv_list", lambda: listed)
    made = kind(
        "sync" if kind is ReplayBuffer else "colocate_async",
        OmegaConf.create({}),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
        poll_interval=0.0,
        refill_fn=None,
    )
    watch_buffer(made, watch(config(max_lost_share=1.0)).losses)
    with pytest.raises(AuthorError, match="session u_1 of step 7: DatasetError: no tool 'sel'"):
        made.sample(global_steps=7, partition_id="train", batch_size=2)


@pytest.mark.parametrize("over", ["arrived", "failed"])
def test_an_authors_mistake_is_not_counted_as_lost(monkeypatch: pytest.MonkeyPatch, over: str) -> None:
    """For a sampler that looks for finished rollouts in a way of its own."""
    monkeypatch.setattr(lost_share, "take_lost", lambda prompts: MISTAKE)
    losses = watch(config(max_lost_share=1.0)).losses
    with pytest.raises(AuthorError, match="no tool 'sel'"):
        losses.arrived("train", ["u"], ["u_0_0"]) if over == "arrived" else losses.failed({"u"}, wanted=2)


# --- counting in a worker ---------------------------------------------------------------------------------------------


def test_only_the_last_session_of_a_prompt_can_find_that_all_are_lost() -> None:
    groups, said = Groups(), []
    with groups.session("u"), groups.session("v") as other:
        with groups.session("u") as group:
            said.append(group.all_lost_with_this_one())
        said.append(other.all_lost_with_this_one())
    assert [False, True] == said
