"""What our agent loops could not roll out is refused before a model is loaded, and the text says where and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

from omegaconf import DictConfig, OmegaConf

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.integrations.rollout_check import check_rollout
from verl_toolrl.rewards import make_reward

Row = dict[str, Any]


def config(loop: str = "toolrl_native", *, prompt: int = 4096, context: int | None = None, **toolrl: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "data": {},
            "actor_rollout_ref": {
                "rollout": {
                    "name": "vllm",
                    "prompt_length": prompt,
                    "response_length": 512,
                    "max_model_len": context,
                    "agent": {"default_agent_loop": loop},
                    "custom": {"toolrl": {"toolbox": "verl_toolrl.tools.inventory", **toolrl}},
                }
            },
        }
    )


def row(session: Any = None, **more: Any) -> Row:
    extra_info = {"index": 0, "session": None if session is None else json.dumps(session)}
    return {
        "prompt": [{"role": "user", "content": "Sell 2 apples. {tools}"}],
        "reward_model": {"ground_truth": "ok"},
        "extra_info": extra_info,
        **more,
    }


def check(cfg: DictConfig, tokenizer: Any, *rows: Row, reward: str = "toolrl", **options: Any) -> None:
    placed = [(f"train.parquet: row {number}", each) for number, each in enumerate(rows)]
    check_rollout(cfg, tokenizer, make_reward(reward, **options), placed)


@pytest.fixture(scope="module")
def qwen(make_tokenizer: Callable[[str], Any]) -> Any:
    return make_tokenizer("qwen2.5")


@pytest.mark.parametrize("loop", ["toolrl_native", "toolrl_dialogue", "toolrl_react"])
def test_a_sound_run_passes_in_every_form(qwen: Any, loop: str) -> None:
    session = {"tools": ["sell"], "state": {"Inventory": {"stock": {}}}, "budget": {"calls": 3}}
    check(config(loop), qwen, row(), row(session))


BAD_ROWS = [
    pytest.param({"tools": ["sel"]}, "row 1: unknown tool 'sel', did you mean 'sell'", id="tool"),
    pytest.param({"state": {"Invntory": {}}}, "row 1: unknown tool state 'Invntory'", id="state"),
    pytest.param({"state": {"Inventory": {"stok": {}}}}, "no keyword 'stok', did you mean 'stock'", id="keyword"),
    pytest.param({"budget": {"cals": 1}}, "row 1: .*did you mean 'calls'", id="budget"),
    pytest.param({"tol": []}, "row 1: .*did you mean 'tools'", id="key"),
]


@pytest.mark.parametrize(("session", "text"), BAD_ROWS)
def test_a_row_that_asks_for_what_is_not_there_is_refused(qwen: Any, session: Any, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        check(config(), qwen, row(), row(session))


def test_a_template_without_tools_is_refused_for_native_calls_only(make_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    with pytest.raises(ConfigError, match="no support for tools"):
        check(config(), tokenizer, row())
    check(config("toolrl_dialogue"), tokenizer, row())


def test_a_template_that_cannot_be_extended_is_refused_for_the_forms_it_breaks(
    make_tokenizer: Callable[[str], Any],
) -> None:
    tokenizer = make_tokenizer("qwen3")
    with pytest.raises(ConfigError, match="cannot be extended turn by turn in the form 'toolrl'"):
        check(config("toolrl_dialogue"), tokenizer, row())
    check(config(), tokenizer, row())
    check(config("toolrl_dialogue", strict_template=False), tokenizer, row())


def test_a_prompt_that_is_too_long_with_its_tools_is_refused(qwen: Any) -> None:
    with pytest.raises(DatasetError, match=r"row 1: the prompt with its tools has \d+ tokens"):
        check(
            config(prompt=1500), qwen, row({"tools": ["sell"]}), row(prompt=[{"role": "user", "content": "x" * 1500}])
        )
    with pytest.raises(DatasetError, match=r"row 0: a prompt of \d+ tokens leaves no room"):
        check(config(context=300), qwen, row())


def test_settings_and_tools_are_looked_at(qwen: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        check(config(step=3), qwen, row())
    with pytest.raises(ConfigError, match="no tools: set"):
        check(config(toolbox=None), qwen, row())


def test_a_row_may_choose_its_loop(make_tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match="no support for tools"):
        check(config("toolrl_dialogue"), make_tokenizer("chatml"), row(), row(agent_name="toolrl_native"))


def test_a_reward_of_trajectories_needs_a_loop_that_records_them(qwen: Any) -> None:
    with pytest.raises(ConfigError, match="the agent loop toolrl_single_turn records none"):
        check(config("toolrl_single_turn"), qwen, row(), reward="steptool")
    check(config(), qwen, row(), reward="steptool")


def test_other_loops_are_left_alone(qwen: Any) -> None:
    check(config("tool_agent", toolbox="nowhere"), qwen, row())


def test_a_tool_that_no_message_shows_is_pointed_out(qwen: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(config("toolrl_dialogue"), qwen, row(prompt=[{"role": "user", "content": "You may sell."}]))
    lines = [line for line in capsys.readouterr().out.splitlines() if "no message names the tool" in line]
    hidden = {line.split("'")[1] for line in lines}
    assert "restock" in hidden and "sell" not in hidden


def test_a_missing_reference_is_found_in_the_rows_of_a_trajectory_reward(tmp_path: Path) -> None:
    from verl_toolrl.integrations.rows import check_files

    path = tmp_path / "train.json"
    path.write_text(json.dumps([{**row(), "data_source": "shop"}]))
    reward = make_reward("steptool", verifier={"name": "exact", "field": "answer"})
    with pytest.raises(DatasetError, match="row 0: .*'answer'"):
        check_files([str(path)], reward)
