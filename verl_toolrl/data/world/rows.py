"""From a task and its tools to a row in verl's schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from verl_toolrl.data.rlla import rl_row, sft_row
from verl_toolrl.data.world.history import earlier_turn
from verl_toolrl.data.world.prompts import Turn, native_messages, native_truth, thought_of, toolrl_messages, truth
from verl_toolrl.data.world.spec import WorldSpec
from verl_toolrl.data.world.splits import HELD_OUT
from verl_toolrl.data.world.subjects import Subject
from verl_toolrl.data.world.tasks import Task
from verl_toolrl.formats import write_response

__all__ = ["RowWriter", "count_words", "prompt_length"]


def count_words(messages: Sequence[Mapping[str, str]], tools: Any = ()) -> int:
    """Return the number of words of all messages, and of the JSON text of the tools."""
    words = len(json.dumps(tools).split()) if tools else 0
    return words + sum(len(message["content"].split()) for message in messages)


def prompt_length(row: Mapping[str, Any], count: Callable[..., int]) -> int:
    """Measure the prompt of an RL row, or all but the answer of an SFT row; tools for the chat template included."""
    messages = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return count(messages, json.loads(row["tools"])) if "tools" in row else count(messages)


class RowWriter:
    """Writes rows in the form that a spec asks for.

    Args:
        spec: What is made.
        count: Length of messages, and of the tools of a native row.
    """

    def __init__(self, spec: WorldSpec, count: Callable[..., int]) -> None:
        self.spec, self._count = spec, count

    def row(
        self, split: str, index: int, task: Task, subjects: Sequence[Subject], *, taken: set[str]
    ) -> dict[str, Any]:
        """Return one row.

        Args:
            split: Its split.
            index: Its place there.
            task: Question and right answer.
            subjects: The tools on its list.
            taken: Questions (`question_key`) that earlier turns of the dialogue must not ask.
        """
        native, tools = self.spec.format == "native", [subject.tool for subject in subjects]
        schemas = json.dumps([tool.schema.to_dict() for tool in tools], ensure_ascii=False)
        names = [tool.name for tool in tools]
        draw = Random(f"{self.spec.seed}/{split}/{index}/earlier turns")
        messages = self._messages(task, subjects, draw, taken)
        if split == "sft" and not native:
            return sft_row(_raw(messages, truth(task)), index=index)
        if split == "sft":
            text = write_response(
                task.calls,
                self.spec.dialect,
                thought=thought_of(task),
                response=task.answer,
                tools=[tool.schema.to_dict() for tool in tools],
            )
            return {"messages": [*messages, {"role": "assistant", "content": text}], "tools": schemas}
        raw = _raw(messages, native_truth(task.calls, task.answer) if native else truth(task))
        source = f"world_{split}" if split in HELD_OUT else "world"
        row = rl_row(raw, index=index, split=split, data_source=source)
        row["prompt"] = messages
        row["extra_info"] |= {
            "kind": task.kind.value,
            "new_wording": task.new_wording,
            "tools": schemas,
            "session": json.dumps({"tools": names, "state": task.state}, ensure_ascii=False),
            "tool_selection": names,
        }
        return {**row, "tools": schemas} if native else row

    def _messages(self, task: Task, subjects: Sequence[Subject], draw: Random, taken: set[str]) -> list[dict[str, str]]:
        tools = [subject.tool for subject in subjects]
        schemas = [tool.schema.to_dict() for tool in tools]
        history: list[Turn] = []
        shortest = 0
        while True:
            if self.spec.format == "native":
                messages = native_messages(task, history=history, dialect=self.spec.dialect, schemas=schemas)
                length = self._count(messages, schemas) if self.spec.min_prompt else 0
            else:
                messages = toolrl_messages(task, tools, style=self.spec.style, history=history)
                length = self._count(messages) if self.spec.min_prompt else 0
            shortest = shortest or length
            if length >= self.spec.min_prompt:
                return messages
            # Half of what seems to be missing comes at once, because measuring is what takes time.
            per_turn = max(1.0, (length - shortest) / len(history)) if history else self.spec.min_prompt
            missing = int((self.spec.min_prompt - length) / per_turn / 2)
            history += [earlier_turn(draw, subjects, taken) for _ in range(max(1, missing))]


def _raw(messages: Sequence[Mapping[str, str]], output: str) -> dict[str, str]:
    return {"instruction": messages[0]["content"], "input": messages[-1]["content"], "output": output}
