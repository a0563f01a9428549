"""Earlier turns of a dialogue, which make a prompt longer: questions that need no tool, and calls with their answers.

Only ready-made tools without a state are called for this, here and now: what they answer depends on nothing else, and
nothing of the world changes by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from verl_toolrl.data.world.asks import spelled
from verl_toolrl.data.world.prompts import Turn
from verl_toolrl.data.world.splits import question_key
from verl_toolrl.data.world.subjects import Subject
from verl_toolrl.data.world.talk import answer_in_text
from verl_toolrl.trajectory import ToolCall

__all__ = ["earlier_turn"]


def earlier_turn(draw: Random, subjects: Sequence[Subject], taken: set[str]) -> Turn:
    """Draw a turn of the dialogue before the question of a row.

    Args:
        draw: Source of chance.
        subjects: The tools on the row's list; some of them are called.
        taken: Questions (`question_key`) that must not be asked.
    """
    free = [subject for subject in subjects if _repeatable(subject)]
    if free and draw.random() < 0.5:
        subject = draw.choice(free)
        ask = subject.ask(draw, held_out=False)
        if question_key(ask.text) not in taken:
            result = subject.tool.function(**subject.tool.check(dict(ask.arguments)))
            call = ToolCall(ask.tool, dict(ask.arguments))
            return Turn(ask.text, f"The result is {spelled(result)}.", (call,), (result,))
    while True:
        said, answer = answer_in_text(draw)
        if question_key(said) not in taken:
            return Turn(said, answer)


def _repeatable(subject: Subject) -> bool:
    tool = subject.tool
    return subject.written and tool.state is None and tool.deterministic and not tool.is_async
