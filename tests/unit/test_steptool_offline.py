"""Trajectories with step rewards to the offline training format, and back from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_toolrl.errors import DatasetError, UnknownNameError
from verl_toolrl.rewards.steptool_offline import OfflineRow, read_offline, to_offline, write_offline
from verl_toolrl.trajectory import Outcome, Step, ToolCall, ToolResult, Trajectory

TRAJECTORY = Trajectory(
    (
        Step("Thought: look", (ToolCall("find", {"q": "é"}),), (ToolResult(Outcome.OK, '{"response": 1}'),)),
        Step("It is 1."),
    ),
    messages=({"role": "system", "content": "S"}, {"role": "user", "content": "U"}),
    id="t1",
)


@pytest.mark.parametrize(
    ("template", "actions", "prompts", "responses"),
    [
        (
            "chatml",
            "text",
            (
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
                '<|im_start|>tool\n{"response": 1}<|im_end|>\n<|im_start|>assistant\n',
            ),
            ("Thought: look<|im_end|>\n", "It is 1.<|im_end|>\n"),
        ),
        (
            "qwen2",
            "react",
            (
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
                '<|im_start|>function\n{"response": 1}<|im_end|>\n<|im_start|>assistant\n',
            ),
            ('Thought: \nAction: find\nAction Input: {"q": "é"}<|im_end|>\n', "It is 1.<|im_end|>\n"),
        ),
        (
            "toolllama",
            "react",
            ("System:\nS\nUser:\nU\nAssistant:\n", 'Function:\n{"response": 1}\nAssistant:\n'),
            ('Action: find\nAction Input: {"q": "é"}\n', "It is 1.\n"),
        ),
        (
            "llama3.1",
            "text",
            (
                "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
                "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                '<|start_header_id|>function<|end_header_id|>\n\n{"response": 1}<|eot_id|>'
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            ("Thought: look<|eot_id|>", "It is 1.<|eot_id|>"),
        ),
    ],
)
def test_a_trajectory_becomes_alternating_fragments(
    template: str, actions: str, prompts: tuple[str, ...], responses: tuple[str, ...]
) -> None:
    row = to_offline(TRAJECTORY, [0.5, 1], template=template, actions=actions)  # type: ignore[arg-type]
    assert OfflineRow(prompts, responses, (0.5, 1.0)) == row


def test_braces_in_messages_are_text() -> None:
    odd = Trajectory((Step("{role}"),), messages=({"role": "user", "content": "{content} {0}"},))
    row = to_offline(odd, [1.0])
    assert "<|im_start|>user\n{content} {0}<|im_end|>\n<|im_start|>assistant\n" == row.prompts[0]
    assert "{role}<|im_end|>\n" == row.responses[0]


def test_rows_survive_the_file_whatever_they_hold(tmp_path: Path) -> None:
    rows = [
        to_offline(TRAJECTORY, [0.1 + 0.2, 1.0]),
        OfflineRow(("tab\t \"quotes\" 'both'", "line\nbreak\r\n\x00"), ("\u2028é", "\\"), (1e-300, -0.5)),
    ]
    path = tmp_path / "train.tsv"
    assert 2 == write_offline(path, rows)
    assert rows == list(read_offline(path))
    assert "prompt\tresponse\treward" == path.read_text().splitlines()[0]
    assert 3 == path.read_text().count("\n")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\tb\n", "header"),
        ("prompt\tresponse\treward\n['a']\t['b']\n", "row 1: 2 cells"),
        ("prompt\tresponse\treward\n['a']\t['b']\t[1, 2]\n", "row 1: 1 prompts, 1 responses, 2 rewards"),
        ("prompt\tresponse\treward\n['a']\t['b']\t__import__('os').getcwd()\n", "no Python literal"),
        ("prompt\tresponse\treward\n['a']\t['b']\t['c']\n", "reward is no list of its kind"),
        ("prompt\tresponse\treward\n'a'\t['b']\t[1]\n", "prompt is no list"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=match):
        list(read_offline(path))


def test_wrong_input_is_named() -> None:
    with pytest.raises(DatasetError, match="'t1': 1 rewards for 2 steps"):
        to_offline(TRAJECTORY, [1.0])
    with pytest.raises(DatasetError, match="not finite"):
        to_offline(TRAJECTORY, [float("nan"), 1.0])
    with pytest.raises(UnknownNameError, match="did you mean 'qwen2'"):
        to_offline(TRAJECTORY, [1, 1], template="qwen")
    with pytest.raises(UnknownNameError, match="form of actions"):
        to_offline(TRAJECTORY, [1, 1], actions="raw")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="no role and text"):
        to_offline(Trajectory((Step("a"),), messages=({"role": "user", "content": [{"type": "image"}]},)), [1.0])
