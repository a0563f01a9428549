"""What our agent loops could not roll out is refused before a model is loaded, and the text says where and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="needs verl")

from omegaconf import DictConfig, OmegaConf

from verl_toolrl.errors import ConfigError, DatasetError
from verl_toolrl.integrations.rollout_check import check_rollout
from verl_toolrl.integrations.rollout_loops import Workplace
from verl_toolrl.rewards import make_reward
from verl_toolrl.toolbox import Toolbox

Row = dict[str, Any]


def config(loop: str = "toolrl_native", *, prompt: int = 4096, context: int | None = None, **toolrl: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "data": {"max_prompt_length": prompt, "filter_overlong_prompts": False},
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


def test_a_template_that_writes_calls_in_another_dialect_is_refused_for_native_calls_only(
    make_tokenizer: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    llama = make_tokenizer("llama3")
    with pytest.raises(ConfigError, match=r"dialect hermes does not read .*custom\.toolrl\.dialect=llama3_json"):
        check(config(), llama, row())
    check(config(dialect="llama3_json"), llama, row())
    check(config("toolrl_dialogue"), llama, row())
    with pytest.raises(ConfigError, match=r"dialect llama3_json does not read .*custom\.toolrl\.dialect=hermes"):
        check(config(dialect="llama3_json"), make_tokenizer("qwen2.5"), row())
    assert "does not read" not in capsys.readouterr().out
    check(config(strict_template=False), llama, row())
    assert "does not read" in capsys.readouterr().out


def test_a_template_that_writes_no_calls_says_nothing_of_the_dialect(make_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = tokenizer.chat_template.replace("message.tool_calls", "false")
    check(config(), tokenizer, row())


def test_the_dialect_is_for_native_calls_and_no_other_form(make_tokenizer: Callable[[str], Any]) -> None:
    cfg, llama = config(dialect="llama3_json"), make_tokenizer("llama3")
    check(cfg, llama, row(), row(agent_name="toolrl_react"), row(agent_name="toolrl_dialogue"))
    read = {form: Workplace.of(cfg, llama, form).dialogue.dialect.name for form in ("native", "react", "toolrl")}
    assert {"native": "llama3_json", "react": "react", "toolrl": "toolrl"} == read


def test_a_prompt_that_is_too_long_with_its_tools_is_refused(qwen: Any) -> None:
    with pytest.raises(DatasetError, match=r"row 1: the prompt with its tools has \d+ tokens"):
        check(
            config(prompt=1500), qwen, row({"tools": ["sell"]}), row(prompt=[{"role": "user", "content": "x" * 1500}])
        )
    with pytest.raises(DatasetError, match=r"row 0: a prompt of \d+ tokens leaves no room"):
        check(config(context=300), qwen, row())


def test_of_the_prompts_those_are_measured_that_are_long_with_their_tools(
    qwen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_toolrl.integrations.rollout_check._LONGEST", 1)
    longer = row({"tools": []}, prompt=[{"role": "user", "content": "x" * 1000}])
    with pytest.raises(DatasetError, match=r"row 1: the prompt with its tools has \d+ tokens"):
        check(config(prompt=1400), qwen, longer, row())
    # 1,200 bytes in 400 characters, against 1,000 in 1,000: a letter of another script is up to three tokens.
    dense = row({"tools": []}, prompt=[{"role": "user", "content": "\u0e01" * 400}])
    with pytest.raises(DatasetError, match="row 0: the prompt"):
        check(config(prompt=1100), qwen, dense, longer)


def text(length: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * length}]


SHORT = row({"tools": ["sell"]})
LONG_WITH_TOOLS, LONG = row(prompt=text(1400)), row(prompt=text(3000))


SCHEMA = {"name": "sell", "description": "Sell. " * 20, "parameters": {"type": "object", "properties": {}}}
OWN_TOOLS = json.dumps([{"type": "function", "function": SCHEMA} for _ in range(8)])


def test_a_row_with_tools_of_its_own_for_a_single_turn_is_left_out_and_counted(
    qwen: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(tools=OWN_TOOLS), row(tools=None), row(tools="[]"), row(tools=OWN_TOOLS)]
    cfg = config("toolrl_single_turn", prompt=1000)
    cfg.data.filter_overlong_prompts = True
    # What this is about: verl's own dataset keeps them, and its loop cuts them.
    assert 4 == len(dataset(cfg, qwen, tmp_path, rows))
    check(cfg, qwen, *rows)
    assert 2 == len(dataset(cfg, qwen, tmp_path, rows))
    assert "2 of 4 prompts are longer than data.max_prompt_length=1000 only with their tools" in capsys.readouterr().out


def test_a_row_with_tools_of_its_own_that_is_too_long_is_refused_where_none_is_left_out(
    qwen: Any, tmp_path: Path
) -> None:
    cfg = config("toolrl_single_turn", prompt=1000)
    check(cfg, qwen, row(tools=OWN_TOOLS))
    with pytest.raises(DatasetError, match=r"row 0 of the 1 .*the prompt with its tools has \d+ tokens"):
        dataset(cfg, qwen, tmp_path, [row(tools=OWN_TOOLS)])
    with pytest.raises(DatasetError, match="row 1: column tools: not JSON"):
        check(cfg, qwen, row(), row(tools="[{"))


def test_rows_of_a_single_turn_without_tools_leave_verls_dataset_alone(qwen: Any) -> None:
    cfg = config("toolrl_single_turn", prompt=10)
    check(cfg, qwen, row(), row(tools=None), row(tools=[]))
    assert "custom_cls" not in cfg.data


def test_more_rows_than_are_measured_here_are_measured_by_the_dataset(
    qwen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_toolrl.integrations.rollout_check._LONGEST", 1)
    # Fewer bytes than the other, whose words the tokenizer of the test writes with fewer tokens.
    rows = [
        row({"tools": []}, prompt=text(1200)),
        row({"tools": []}, prompt=[{"role": "user", "content": "tool" * 400}]),
    ]
    cfg = config(prompt=1100)
    cfg.data.filter_overlong_prompts = True
    check(cfg, qwen, *rows)
    assert ["tool"] == dataset(cfg, qwen, tmp_path, rows)


def dataset(cfg: DictConfig, tokenizer: Any, path: Path, rows: Sequence[Row], *, samples: int = -1) -> list[str]:
    """Write rows, let verl make its dataset of them, and return the first letters of the prompts that are left."""
    from verl.trainer.ppo.utils import create_rl_dataset

    file = path / "train.json"
    file.write_text("\n".join(json.dumps(each) for each in rows))
    OmegaConf.update(cfg, "data.filter_overlong_prompts_workers", None, force_add=True)
    OmegaConf.update(cfg, "data.cache_dir", str(path / "cache"), force_add=True)
    made = create_rl_dataset([str(file)], cfg.data, tokenizer, None, max_samples=samples)
    return [made[number]["raw_prompt"][0]["content"][:4] for number in range(len(made))]


def test_a_prompt_that_verl_leaves_out_anyway_is_no_mistake(
    qwen: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(prompt=1500)
    cfg.data.filter_overlong_prompts = True
    check(cfg, qwen, SHORT, LONG)
    assert ["Sell"] == dataset(cfg, qwen, tmp_path, [SHORT, LONG])
    assert "only with their tools" not in capsys.readouterr().out


def test_a_prompt_that_only_tools_make_too_long_is_left_out_and_counted(
    qwen: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [LONG_WITH_TOOLS, SHORT, LONG, LONG_WITH_TOOLS]
    cfg = config(prompt=1500)
    cfg.data.filter_overlong_prompts = True
    # What this is about: verl's own dataset would keep them.
    assert ["xxxx", "Sell", "xxxx"] == dataset(cfg, qwen, tmp_path, rows)
    check(cfg, qwen, *rows)
    assert ["Sell"] == dataset(cfg, qwen, tmp_path, rows)
    said = "2 of 3 prompts are longer than data.max_prompt_length=1500 only with their tools"
    assert said in capsys.readouterr().out


def test_rows_of_which_none_has_room_for_its_tools_are_refused(qwen: Any, tmp_path: Path) -> None:
    cfg = config(prompt=1500)
    cfg.data.filter_overlong_prompts = True
    check(cfg, qwen, LONG_WITH_TOOLS)
    with pytest.raises(DatasetError, match=r"no row of .*train\.json is left; .* has \d+ tokens, .* is 1500"):
        dataset(cfg, qwen, tmp_path, [LONG_WITH_TOOLS, LONG_WITH_TOOLS])


def test_a_prompt_that_verl_takes_no_sample_of_is_no_mistake(qwen: Any, tmp_path: Path) -> None:
    cfg = config(prompt=1500)
    cfg.data.train_max_samples = 1
    check(cfg, qwen, SHORT, LONG)
    assert ["Sell"] == dataset(cfg, qwen, tmp_path, [SHORT, LONG], samples=1)
    with pytest.raises(DatasetError, match=r"row 0 of the 1 that are used of .*the prompt with its tools has \d+"):
        dataset(cfg, qwen, tmp_path, [LONG, SHORT], samples=1)


def test_beside_a_dataset_class_of_the_user_only_what_verl_leaves_out_passes(qwen: Any) -> None:
    cfg = config(prompt=1500)
    cfg.data.filter_overlong_prompts = True
    cfg.data.custom_cls = {"path": "my_dataset.py", "name": "MyDataset"}
    check(cfg, qwen, SHORT, LONG)
    with pytest.raises(DatasetError, match="row 1: the prompt with its tools has"):
        check(cfg, qwen, SHORT, LONG_WITH_TOOLS)
    assert "my_dataset.py" == cfg.data.custom_cls.path


def test_prompts_that_fit_leave_verls_dataset_alone(qwen: Any) -> None:
    cfg = config()
    cfg.data.filter_overlong_prompts = True
    check(cfg, qwen, SHORT)
    assert "custom_cls" not in cfg.data


def test_rows_are_not_kept_and_no_session_is_opened_for_a_row_that_asks_for_nothing(
    qwen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(dict[str, Any]):
        alive = most = 0

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            Noted.alive += 1
            Noted.most = max(Noted.most, Noted.alive)

        def __del__(self) -> None:
            Noted.alive -= 1

    opened = []
    plain = Toolbox.session
    monkeypatch.setattr(Toolbox, "session", lambda box, *a, **k: opened.append(1) or plain(box, *a, **k))
    monkeypatch.setattr("verl_toolrl.integrations.rollout_check._LONGEST", 4)
    asked = {"state": {"Inventory": {"stock": {}}}}
    rows = ((f"row {number}", Noted(row(asked if number == 50 else None))) for number in range(100))
    check_rollout(config(), qwen, make_reward("toolrl"), rows)
    assert [1] == opened and Noted.most < 10


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
