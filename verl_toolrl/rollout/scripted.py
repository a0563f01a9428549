"""An engine that plays given texts: for tests of tools, dialogues and rewards, and for measuring the loop itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.rollout.engine import Generation

__all__ = ["ScriptedEngine"]


class ScriptedEngine:
    """Plays one text a turn and ends each with the stop token.

    Args:
        tokenizer: Turns the texts into tokens.
        script: The texts of the turns, or a function `(request_id, turn) -> text`, for many trajectories. An empty text
            is a generation without any token; a turn behind the last one raises `InfrastructureError`, as a server does
            that went away.
        stop_id: Token written behind each text; None writes none.
        seconds: Time that each generation takes.
        abort_after: Turn -> number of tokens after which its first attempt is given up.
    """

    def __init__(
        self,
        tokenizer: Any,
        script: Sequence[str] | Callable[[str, int], str],
        *,
        stop_id: int | None = None,
        seconds: float = 0.0,
        abort_after: Mapping[int, int] | None = None,
    ) -> None:
        self._tokenizer, self._script, self._stop_id, self._seconds = tokenizer, script, stop_id, seconds
        self._abort_after = dict(abort_after or {})
        self._turns: dict[str, int] = {}
        self._rest: dict[str, list[int]] = {}
        self.prompts: list[list[int]] = []
        """Every prompt that was asked for, in order."""
        self.sampling: list[dict[str, Any]] = []
        """The sampling parameters that came with each."""

    async def generate(self, prompt_ids: list[int], sampling: Mapping[str, Any], request_id: str) -> Generation:
        """Play the next turn, cut to `max_tokens`; see `Engine.generate`."""
        self.prompts.append(list(prompt_ids))
        self.sampling.append(dict(sampling))
        if self._seconds:
            await asyncio.sleep(self._seconds)
        tokens = self._rest.pop(request_id, None)
        if tokens is None:
            turn = self._turns.get(request_id, 0)
            self._turns[request_id] = turn + 1
            tokens = self._tokens(request_id, turn)
            if turn in self._abort_after:
                cut = min(self._abort_after.pop(turn), len(tokens), int(sampling.get("max_tokens", len(tokens))))
                self._rest[request_id] = tokens[cut:]
                return Generation(tokens[:cut], [-0.5] * cut, aborted=True)
        tokens = tokens[: sampling.get("max_tokens")]
        return Generation(tokens, [-0.5] * len(tokens))

    def _tokens(self, request_id: str, turn: int) -> list[int]:
        if not callable(self._script) and turn >= len(self._script):
            raise InfrastructureError(f"the script has {len(self._script)} turns")
        text = self._script(request_id, turn) if callable(self._script) else self._script[turn]
        if not text:
            return []
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [*ids, *([] if self._stop_id is None else [self._stop_id])]
