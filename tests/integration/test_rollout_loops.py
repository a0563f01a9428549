"""Our agent loops as verl makes and calls them, with verl's own outputs, a scripted engine and real tools."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, DictConfigWrap, _agent_loop_registry
from verl.workers.rollout.replica import TokenOutput

from verl_toolrl.errors import DatasetError, InfrastructureError, ToolDefinitionError
from verl_toolrl.integrations import lost_sessions, say
from verl_toolrl.integrations.rollout_engine import request_seed
from verl_toolrl.integrations.session_seed import session_seed
from verl_toolrl.integrations.tiny_model import write_tiny_model
from verl_toolrl.integrations.trajectory_output import TrajectoryOutput
from verl_toolrl.integrations.trajectory_travel import (
    STEP_REWARDS,
    TRAJECTORY,
    dump_trajectory,
    read_trajectory,
    trajectory_result,
)
from verl_toolrl.rewards import make_reward
from verl_toolrl.rollout import ScriptedEngine
from verl_toolrl.rollout.wire import loads
from verl_toolrl.trajectory import Outcome, Step, StopReason, ToolCall, Trajectory

CALL = '<think> a </think>\n<tool_call>\n{"name": "calculate", "parameters": {"expression": "2 + 3"}}\n</tool_call>'
ANSWER = "<think> b </think>\n<response> 5 </response>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(write_tiny_model(weights=False))


def config(**toolrl: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "data": {},
            "actor_rollout_ref": {
                "rollout": {
                    "name": "vllm",
                    "seed": 3,
                    "prompt_length": 512,
                    "response_length": 512,
                    "max_model_len": None,
                    "custom": {"toolrl": {"toolbox": "verl_toolrl.tools.calculator", "audit_every": 1, **toolrl}},
                }
            },
        }
    )


class Client:
    """Stands for verl's `LLMServerClient`: the scripted engine behind its signature, with versions of weights."""

    def __init__(self, tokenizer: Any, script: Sequence[str] | Callable[[str, int], str], **options: Any) -> None:
        self.engine = ScriptedEngine(tokenizer, script, stop_id=tokenizer.eos_token_id, **options)
        self.version = 4

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **more: Any
    ) -> TokenOutput:
        made = await self.engine.generate(prompt_ids, sampling_params, request_id)
        sampling_params.clear()  # verl's servers pop what they have read
        self.version += 1
        fields = {key: self.version for key in ("global_steps", "min_global_steps", "max_global_steps")}
        reason = "aborted" if made.aborted else "completed"
        return TokenOutput(
            token_ids=list(made.tokens),
            log_probs=list(made.logprobs or []),
            stop_reason=reason,
            num_preempted=1,
            extra_fields=fields,
        )


def run(
    loop: str,
    cfg: DictConfig,
    client: Client,
    tokenizer: Any,
    *,
    sessions: int = 1,
    row: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Run the sessions of one prompt as verl's worker does: made one by one, all started before any can end."""
    kwargs = {
        "raw_prompt": [{"role": "user", "content": "2 + 3? {tools}"}],
        "uid": "u",
        "global_steps": 2,
        "index": 0,
        **(row or {}),
    }

    async def one(number: int) -> Any:
        made = hydra.utils.instantiate(
            _agent_loop_registry[loop],
            trainer_config=DictConfigWrap(cfg),
            server_manager=client,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=object,
            data_config=DictConfigWrap(cfg.data),
            tools=None,
        )
        return await made.run({"temperature": 1.0, "logprobs": True}, session_id=number, **kwargs)

    async def everything() -> list[Any]:
        return await asyncio.gather(*(one(i) for i in range(sessions)), return_exceptions=True)

    results = asyncio.run(everything())
    return results


def one(*args: Any, **kwargs: Any) -> Any:
    (result,) = run(*args, **kwargs)
    if isinstance(result, BaseException):
        raise result
    return result


def test_a_trajectory_reaches_verl_with_its_steps(tokenizer: Any) -> None:
    output = one("toolrl_dialogue", config(), Client(tokenizer, [CALL, ANSWER]), tokenizer)
    trajectory = read_trajectory(output.extra_fields)
    assert trajectory is not None and StopReason.FINISHED is trajectory.stop_reason
    assert ["5"] == [result.content for result in trajectory.steps[0].results]
    text = tokenizer.decode(output.response_ids)
    assert text == f'{CALL}<|im_end|>\n<|im_start|>user\n<obs> [{{"name": "calculate", "results": 5}}] </obs>' + (
        f"<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>"
    )
    trained = [token for token, mask in zip(output.response_ids, output.response_mask) if mask]
    assert tokenizer.decode(trained) == f"{CALL}<|im_end|>{ANSWER}<|im_end|>"
    # 1 prompt, 2 answers, 1 answer of a tool
    assert (4, 0) == (output.num_turns, output.extra_fields["toolrl_audit"])


def test_versions_of_the_weights_run_from_the_first_turn_to_the_last(tokenizer: Any) -> None:
    client = Client(tokenizer, [CALL, ANSWER], abort_after={0: 5})
    output = one("toolrl_dialogue", config(), client, tokenizer)
    # Three generations: a first one that was given up after 5 tokens, its rest, and the answer.
    assert (5, 7) == (output.extra_fields["min_global_steps"], output.extra_fields["max_global_steps"])
    assert 3 == output.metrics.num_preempted
    trajectory = read_trajectory(output.extra_fields)
    assert trajectory is not None and CALL == trajectory.steps[0].text


def test_the_engine_gets_only_what_both_engines_understand(tokenizer: Any) -> None:
    client = Client(tokenizer, [CALL, ANSWER])
    one("toolrl_dialogue", config(), client, tokenizer)
    first, second = client.engine.sampling
    assert {"temperature", "logprobs", "max_tokens", "stop_token_ids", "seed"} == set(first)
    assert first["seed"] != second["seed"] and first["max_tokens"] > second["max_tokens"]


def test_sessions_of_a_group_sample_from_seeds_of_their_own(tokenizer: Any) -> None:
    clients = [Client(tokenizer, lambda request, turn: ANSWER) for _ in range(2)]
    for client in clients:
        run("toolrl_dialogue", config(), client, tokenizer, sessions=4)
    seeds = [[sampling["seed"] for sampling in client.engine.sampling] for client in clients]
    assert 4 == len(set(seeds[0])) and sorted(seeds[0]) == sorted(seeds[1])


def test_a_lost_session_leaves_its_group_the_others(tokenizer: Any) -> None:
    def script(request: str, turn: int) -> str:
        if request == "u_1":
            raise InfrastructureError("the server went away")
        return ANSWER

    results = run("toolrl_dialogue", config(), Client(tokenizer, script), tokenizer, sessions=3)
    assert [] == results[1] and all(read_trajectory(results[i].extra_fields) for i in (0, 2))


def test_a_prompt_whose_sessions_are_all_lost_fails(tokenizer: Any) -> None:
    def script(request: str, turn: int) -> str:
        raise InfrastructureError("the server went away")

    results = run("toolrl_dialogue", config(), Client(tokenizer, script), tokenizer, sessions=3)
    assert 2 == sum(result == [] for result in results)
    (failed,) = (result for result in results if isinstance(result, BaseException))
    assert isinstance(failed, InfrastructureError) and "all sessions of prompt u are lost" in str(failed)


FRAGILE = """
from verl_toolrl.toolbox import StatefulTool, tool

class Fragile(StatefulTool):
    @tool(isolation="inline")
    def touch(self) -> str:
        'Touch.'
        return "ok"

    def snapshot(self):
        raise {error}("because")
"""


def fragile(folder: Path, error: str) -> DictConfig:
    """A run whose tool cannot say what its state is."""
    (folder / "fragile.py").write_text(FRAGILE.replace("{error}", error))
    return config(toolbox=str(folder / "fragile.py"))


def test_a_final_state_that_nobody_knows_loses_the_session(tokenizer: Any, tmp_path: Path) -> None:
    client = Client(tokenizer, lambda request, turn: ANSWER)
    first, last = run("toolrl_dialogue", fragile(tmp_path, "ConnectionError"), client, tokenizer, sessions=2)
    assert [] == first and isinstance(last, InfrastructureError)
    assert "final state: state Fragile of trajectory u_1: ConnectionError: because" in str(last)


def test_a_snapshot_of_the_authors_that_raises_is_told_to_the_author(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolDefinitionError, match=r"state Fragile .*fragile.py:\d+ in snapshot: KeyError"):
        one("toolrl_dialogue", fragile(tmp_path, "KeyError"), Client(tokenizer, [ANSWER]), tokenizer)


def test_the_journals_text_holds_the_tools_messages_as_the_model_saw_them(tokenizer: Any) -> None:
    output = one("toolrl_dialogue", config(), Client(tokenizer, [CALL, ANSWER]), tokenizer)
    told = '<obs> [{"name": "calculate", "results": 5}] </obs>'
    appended = json.loads(output.extra_fields[TRAJECTORY])["appended"]
    assert [[{"role": "user", "content": told}]] == appended
    assert told in tokenizer.decode(output.response_ids)


@pytest.mark.parametrize("argument", ["plain", 10**40])
def test_messages_of_any_answer_travel_with_their_trajectory(argument: Any) -> None:
    trajectory = Trajectory((Step("", (ToolCall("f", {"n": argument}),)),))
    for appended in ([], [[{"role": "tool", "content": "5"}]], [[{"role": "tool", "content": "lone \ud800"}]]):
        text = dump_trajectory(trajectory, appended)
        assert trajectory == read_trajectory({TRAJECTORY: text}) and appended == loads(text)["appended"]


def test_the_seed_of_a_session_depends_on_its_row_alone() -> None:
    rollout = OmegaConf.create({"seed": 3})
    row = {"raw_prompt": [{"role": "user", "content": "2 + 3?"}], "global_steps": 2, "session_id": 1, "index": 7}
    seed = session_seed({"temperature": 1.0}, rollout, row)
    assert request_seed(seed=3, step=2, row=["7", row["raw_prompt"]], session=1) == seed
    assert seed == session_seed({}, rollout, {**row, "index": 0, "extra_info": {"index": 7}})
    assert seed != session_seed({}, rollout, {**row, "session_id": 2})
    assert session_seed({"temperature": 0.0}, rollout, row) is None


def test_a_row_chooses_its_tools(tokenizer: Any) -> None:
    row = {"extra_info": {"session": json.dumps({"tools": ["day_of_week"]})}}
    output = one("toolrl_dialogue", config(toolbox="quickstart"), Client(tokenizer, [CALL, ANSWER]), tokenizer, row=row)
    trajectory = read_trajectory(output.extra_fields)
    assert trajectory is not None and Outcome.MODEL_ERROR is trajectory.steps[0].results[0].outcome
    assert "day_of_week" in trajectory.messages[0]["content"] and "calculate" not in trajectory.messages[0]["content"]


def test_a_row_without_tools_gets_none(tokenizer: Any) -> None:
    row = {"extra_info": {"session": {"tools": []}}}
    output = one("toolrl_dialogue", config(), Client(tokenizer, [CALL, ANSWER]), tokenizer, row=row)
    trajectory = read_trajectory(output.extra_fields)
    assert trajectory is not None and Outcome.MODEL_ERROR is trajectory.steps[0].results[0].outcome
    assert "calculate" not in trajectory.messages[0]["content"]


def test_a_single_turn_shows_the_tools_of_its_row_and_cuts_none(
    make_tokenizer: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer("qwen2.5")
    reported: list[str] = []

    async def report(session: str, reason: str, step: int, kind: str = "infrastructure") -> None:
        reported.append(f"{session} {kind} {reason}")

    monkeypatch.setattr(lost_sessions, "report_lost", report)
    schema = {"name": "sell", "description": "Sell.", "parameters": {"type": "object", "properties": {}}}
    fits, not_so = (json.dumps([{**schema, "description": "Sell. " * times}]) for times in (1, 500))
    client = Client(tokenizer, lambda request, turn: ANSWER)
    output = one("toolrl_single_turn", config(), client, tokenizer, row={"tools": fits})
    assert '"sell"' in tokenizer.decode(output.prompt_ids)
    with pytest.raises(DatasetError, match=r"the prompt with its tools has \d+ tokens, data.max_prompt_length is 512"):
        one("toolrl_single_turn", config(), client, tokenizer, row={"tools": not_so})
    assert 1 == len(client.engine.prompts) and reported[0].startswith("u_0 author DatasetError: the prompt with its")
    # Without tools verl cuts what is longer, as ever; it is said and counted.
    monkeypatch.setattr(say, "_said", Counter())
    long = {"raw_prompt": [{"role": "user", "content": "word " * 2000}]}
    for _ in range(2):
        assert 512 == len(one("toolrl_single_turn", config(), client, tokenizer, row=long).prompt_ids)
    assert 1 == capsys.readouterr().out.count("it loses its beginning [cut prompts: 1 so far in this process]")


def test_an_outcome_stands_on_the_last_token_that_the_model_wrote() -> None:
    output = TrajectoryOutput(
        prompt_ids=[1],
        response_ids=[5, 6, 7, 8],
        response_mask=[1, 1, 0, 0],
        reward_score=2.0,
        metrics=AgentLoopMetrics(),
        extra_fields={"reward_extra_info": {"score": 2.0}},
    )
    assert [0.0, 2.0, 0.0, 0.0] == output.as_dict()["rm_scores"].tolist()


def test_a_scheduled_reward_of_trajectories_is_reported_unscheduled_beside(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text("def score(trajectory, step=0, total_steps=None):\n    return {'late': step / total_steps}\n")
    info = trajectory_result(make_reward(f"{path}:score"), Trajectory((Step("5"),)), 3, 12)["reward_extra_info"]
    assert {"score": 0.25, "late": 0.25, "unscheduled/score": 1.0, "unscheduled/late": 1.0} == info


def test_step_rewards_stand_on_the_last_token_of_their_steps(tokenizer: Any) -> None:
    output = one(
        "toolrl_dialogue",
        config(),
        Client(tokenizer, [CALL, ANSWER]),
        tokenizer,
        row={"reward_model": {"ground_truth": "5"}},
    )
    trajectory = read_trajectory(output.extra_fields)
    assert trajectory is not None
    result = trajectory_result(make_reward("steptool"), trajectory, 1, 10)
    rewards = json.loads(result["reward_extra_info"][STEP_REWARDS])
    output.reward_score = result["reward_score"]
    output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
    fields = output.as_dict()
    ends = [step.span[1] - 1 for step in trajectory.steps if step.span]
    wanted = torch.zeros(len(output.response_ids))
    wanted[ends] = torch.tensor(rewards)
    assert torch.equal(wanted, fields["rm_scores"]) and len(ends) == 2
    # The one call of the trajectory succeeded and its answer was used (0.5), and 5 is right (1.0).
    assert [0.5, 1.0] == rewards and 1.5 == result["reward_score"]
    assert STEP_REWARDS not in fields["extra_fields"]["reward_extra_info"]
