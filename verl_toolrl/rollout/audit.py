"""What must hold of every finished trajectory, checked on a sample at run time and on all of them in tests."""

from __future__ import annotations

from collections.abc import Iterator

from verl_toolrl.errors import ConfigError
from verl_toolrl.rollout.chat import ChatTokens
from verl_toolrl.rollout.dialogue import Dialogue
from verl_toolrl.rollout.loop import Rollout

__all__ = ["audit"]


def audit(
    rollout: Rollout, chat: ChatTokens, dialogue: Dialogue, tools: list | None = None, *, against_template: bool = True
) -> Iterator[str]:
    """Yield what is wrong with a trajectory; nothing for a sound one.

    - every token that trains lies in the span of a step, and every token of a span trains;
    - the tokens of a span are the step's text;
    - tokens without a log-probability of the engine have 0.0, and no other list is longer than the response;
    - the whole stream reads as the template renders the whole conversation. (Its tokens may differ: a model can write
      a text in other tokens than the tokenizer would choose, and end an answer with another of the tokens that end
      one, and those are the ones that train.)
    """
    ids, mask = rollout.response_ids, rollout.response_mask
    if len(mask) != len(ids) or (rollout.logprobs is not None and len(rollout.logprobs) != len(ids)):
        yield f"{len(ids)} tokens, {len(mask)} of mask"
        return
    wanted = [0] * len(ids)
    for number, step in enumerate(rollout.trajectory.steps):
        assert step.span is not None
        start, end = step.span
        wanted[start:end] = [1] * (end - start)
        if chat.answer_text(ids[start:end]) != step.text:
            yield f"step {number}: the tokens of its span are not its text"
    if wanted != mask:
        at = next(i for i, (a, b) in enumerate(zip(wanted, mask)) if a != b)
        yield f"token {at} {'trains outside' if mask[at] else 'is masked inside'} the span of a step"
    if not against_template:
        return
    messages = [dict(message) for message in rollout.trajectory.messages]
    for step, appended in zip(rollout.trajectory.steps, rollout.appended):
        messages += [{"role": "assistant", "content": step.text}, *appended]
    schemas = tools if dialogue.tools_in_template else None
    seen = chat.decode([*rollout.prompt_ids, *_ended_as_rendered(rollout, chat)])
    try:
        whole = chat.render(messages, tools=schemas)
    except ConfigError as err:  # of what the model wrote: no mistake of an author
        yield str(err)
        return
    if whole != seen:
        at = next((i for i, (a, b) in enumerate(zip(whole, seen)) if a != b), min(len(whole), len(seen)))
        yield f"the template renders {whole[at : at + 40]!r} where the model saw {seen[at : at + 40]!r}"


def _ended_as_rendered(rollout: Rollout, chat: ChatTokens) -> list[int]:
    """Return the tokens before the last answer, with the template's own end behind each answer that stopped at one."""
    spans = [step.span for step in rollout.trajectory.steps]
    assert spans[-1] is not None
    ids = rollout.response_ids[: spans[-1][0]]
    for span in spans[:-1]:
        assert span is not None
        if chat.closing_id is not None and ids[span[1] - 1] in chat.stop_ids:
            ids[span[1] - 1] = chat.closing_id
    return ids
