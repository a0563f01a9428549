"""A chat template as tokens: the first prompt once, then only what is appended.

A context is never rendered a second time. What the engine wrote stays token by token, and behind it goes what the
template puts between an answer and the next one: the end of the answer, the tools' messages, the opening of the next
answer. That piece is found by rendering a short conversation whose answer is a marker, and cutting behind the marker:

    <|im_start|>assistant\\nMARKER<|im_end|>\\n<|im_start|>user\\n<obs> ... </obs><|im_end|>\\n<|im_start|>assistant\\n
                                 |<------------------------------ tail -------------------------------------->|

Where the engine has written the end of the answer itself (the token that stopped it), the tail's own is left out.
`extension_problems` says for which templates this is not what the template would render: those that change earlier
turns, as Qwen3's does when a user's message follows a thought.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import ConfigError
from verl_toolrl.trajectory import ToolCall

__all__ = ["ChatTokens", "Message"]

Message = Mapping[str, Any]
"""A message in chat form: role, content."""

_MARKER = "MARKER-0f9c"
_MARKS = ("FIRST-51d7", "SECOND-a8e2")
_AWKWARD = ('{"a": "b \\" c"}\n', "  plain, with spaces and 'quotes'  ", "x")
_PROMPTS = 64
_LONG = 512


class ChatTokens:
    """A tokenizer with its chat template.

    Args:
        tokenizer: Of transformers: `apply_chat_template`, `encode`, `decode`.
        template_kwargs: Further arguments of the template (`data.apply_chat_template_kwargs`).
        stop_ids: Tokens that end an answer, beside the tokenizer's own and the one with which the template ends it.

    Raises:
        ConfigError: If the tokenizer has no chat template, or the template drops an answer.
    """

    def __init__(
        self, tokenizer: Any, *, template_kwargs: Mapping[str, Any] | None = None, stop_ids: Sequence[int] = ()
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; set actor_rollout_ref.model.custom_chat_template")
        self.tokenizer = tokenizer
        # What transformers does around it costs as much again as a short text; a slow tokenizer has none.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._kwargs = dict(template_kwargs or {})
        self._prompts: OrderedDict[str, list[int]] = OrderedDict()
        self._frames: dict[tuple[bool, tuple[str, ...]], list[str] | None] = {}
        self._special = sorted(set(tokenizer.all_special_tokens) | self._special_looking(), key=len, reverse=True)
        self.opens_thought = self.tail_text([{"role": "user", "content": "x"}]).rstrip().endswith("<think>")
        """Whether the template begins each answer inside a thought."""
        self.closing_id = self._find_closing_id()
        """The token with which the template ends an answer; None if it ends it with plain text."""
        self.stop_ids = self._find_stop_ids(stop_ids)
        """Tokens that end an answer; the engine is told to stop at them."""
        self.end_ids = self.stop_ids | set(tokenizer.all_special_ids)
        """Tokens of which none belongs to the text of an answer. An engine may know more ends than we do (those of the
        model's generation config); they are among these."""

    def _special_looking(self) -> set[str]:
        """Control tokens that a tokenizer added without calling them special."""
        return {token for token in self.tokenizer.get_added_vocab() if token.startswith("<|") and token.endswith("|>")}

    def _find_closing_id(self) -> int | None:
        first = self.encode(self.tail_text([{"role": "user", "content": "x"}]))[:1]
        return first[0] if first and first[0] in set(self.tokenizer.get_added_vocab().values()) else None

    def _find_stop_ids(self, given: Sequence[int]) -> frozenset[int]:
        eos = getattr(self.tokenizer, "eos_token_id", None)
        found = {*given, *(eos if isinstance(eos, (list, tuple)) else [eos]), self.closing_id} - {None}
        # Llama 3 ends a message that asks for a tool with a token of its own.
        found.update(token for name, token in self.tokenizer.get_added_vocab().items() if name == "<|eom_id|>")
        return frozenset(int(token) for token in found)

    def render(self, messages: Sequence[Message], *, tools: Any = None, generation_prompt: bool = True) -> str:
        """Return the text of a conversation.

        Raises:
            ConfigError: If the template refuses it.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools or None,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self._kwargs,
            )
        except Exception as err:  # a template raises whatever its author wrote
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ConfigError(f"the chat template refuses the roles {roles}: {type(err).__name__}: {err}") from err

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a rendered text; nothing is added. Safe to call from several threads."""
        backend = self._backend
        if backend is not None and backend.truncation is None and backend.padding is None:
            return backend.encode(text, add_special_tokens=False).ids
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included, white space untouched."""
        if self._backend is not None:
            return self._backend.decode(list(ids), skip_special_tokens=False)
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def harmless(self, text: str) -> str:
        """Break up special tokens in a text from outside, so that a tool's answer cannot end its own message.

        A name that a model made up comes back in an answer, too.
        """
        if not text.isascii():
            text = text.encode("utf-8", errors="replace").decode()  # lone surrogates, which no tokenizer takes
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def answer_text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer without the tokens that ended it."""
        end = len(ids)
        while end and ids[end - 1] in self.end_ids:
            end -= 1
        return self.decode(ids[:end])

    def prompt_ids(self, messages: Sequence[Message], *, tools: Any = None) -> list[int]:
        """Return the tokens of the first prompt. The samples of a group share one rendering."""
        key = repr((messages, tools))
        ids = self._prompts.get(key)
        if ids is None:
            ids = self._prompts[key] = self.encode(self.render(messages, tools=tools))
            if len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
        return list(ids)

    async def tail_ids(self, appended: Sequence[Message], last_id: int | None, *, tools: Any = None) -> list[int]:
        """Return the tokens that lead from an answer over `appended` to the next answer.

        Args:
            appended: Messages that follow the answer.
            last_id: Last token that the engine wrote; one that ends an answer is not written twice.
            tools: Schemas that the prompt was rendered with.
        """
        text = self.tail_text(appended, tools=tools)
        if len(text) < _LONG:
            ids = self.encode(text)
        else:  # the tokenizer lets go of Python's lock; other trajectories go on meanwhile
            ids = await asyncio.get_running_loop().run_in_executor(None, self.encode, text)
        return ids[1:] if last_id in self.stop_ids and ids[0] in self.stop_ids else ids

    def tail_text(self, appended: Sequence[Message], *, tools: Any = None) -> str:
        """Return the text behind an answer, from its end to the opening of the next answer.

        Args:
            appended: Messages that follow the answer.
            tools: Schemas that the prompt was rendered with. They stand before the answer, but some tokenizers have
                a template of its own for conversations with tools; one schema is enough to choose it.
        """
        tools = list(tools[:1]) if tools else None
        shape = (tools is not None, tuple(str(message["role"]) for message in appended))
        if shape not in self._frames:
            self._frames[shape] = self._frame(appended, tools)
        frame = self._frames[shape]
        if frame is None or not all(type(message["content"]) is str for message in appended):
            return self._rendered_tail(appended, tools)
        parts = [frame[0]]
        for message, after in zip(appended, frame[1:]):
            parts += [message["content"], after]
        return "".join(parts)

    def _rendered_tail(self, appended: Sequence[Message], tools: Any) -> str:
        answered = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARKER}]
        # The first one: a tool's answer may hold the marker, too.
        _, marker, tail = self.render([*answered, *appended], tools=tools).partition(_MARKER)
        if not marker:
            raise ConfigError("the chat template drops the assistant's message before a tool's answer")
        return tail

    def _frame(self, appended: Sequence[Message], tools: Any) -> list[str] | None:
        """Find the text around the contents, if the template takes contents as they are; else None."""
        marks = [f"{_MARKS[i % 2]}-{i}-" for i in range(len(appended))]
        text, frame = self._rendered_tail([{**m, "content": mark} for m, mark in zip(appended, marks)], tools), []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                return None
            frame.append(before)
        frame.append(text)
        for content in _AWKWARD:
            parts = [content + part for part in frame[1:]]
            # The other keys of a message (the tool's name) must not show either.
            changed = [{**{key: "other" for key in m}, "role": m["role"], "content": content} for m in appended]
            if self._rendered_tail(changed, tools) != frame[0] + "".join(parts):
                return None
        return frame

    def extension_problems(
        self, answers: Sequence[str], appended: Sequence[Sequence[Message]], *, tools: Any = None
    ) -> Iterator[str]:
        """Yield what stands against extending turn by turn: where the whole rendering differs from the pieces.

        Args:
            answers: What a model may write, one text a turn.
            appended: Messages that follow each answer.
            tools: Schemas for the template.
        """
        messages: list[Message] = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Go on."}]
        try:
            pieces = self.render(messages, tools=tools)
        except ConfigError:  # some templates know no system message
            messages = messages[1:]
            pieces = self.render(messages, tools=tools)
        for turn, (answer, more) in enumerate(zip(answers, appended)):
            messages = [*messages, {"role": "assistant", "content": answer}, *more]
            pieces += answer + self.tail_text(more, tools=tools)
            whole = self.render(messages, tools=tools)
            if whole != pieces:
                at = next((i for i, (a, b) in enumerate(zip(whole, pieces)) if a != b), min(len(whole), len(pieces)))
                yield (
                    f"after turn {turn + 1} the template renders {whole[max(at - 20, 0) : at + 40]!r} where the model "
                    f"has seen {pieces[max(at - 20, 0) : at + 40]!r}"
                )
                return

    def written_call(self, call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield an answer that makes a call, as the template writes it; nothing where it writes no calls.

        Arguments are given to it as an object and as JSON text, of which some templates take one alone.
        """
        question = {"role": "user", "content": "x"}
        for arguments in (dict(call.arguments), json.dumps(dict(call.arguments))):
            asked = {"id": "call00001", "type": "function", "function": {"name": call.name, "arguments": arguments}}
            answers = ({"content": _MARKER}, {"content": "", "tool_calls": [asked]})
            try:
                plain, calling = (
                    self.render([question, {"role": "assistant", **each}], tools=tools, generation_prompt=False)
                    for each in answers
                )
            except ConfigError:
                continue
            answer = calling[len(os.path.commonprefix([plain, calling])) :]
            if call.name in answer:
                yield self.answer_text(self.encode(answer.rstrip()))

    def shows_tools(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template writes the names of the tools it is given into the prompt."""
        text = self.render([{"role": "user", "content": "Hello."}], tools=list(tools))
        return all(str(tool["function"]["name"]) in text for tool in tools)
