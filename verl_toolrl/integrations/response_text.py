"""The text of a response as rewards read it, out of the tokens that the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["response_text"]


def response_text(tokenizer: Any, ids: Sequence[int], *, special_tokens: bool = False) -> str:
    """Decode a response.

    Args:
        tokenizer: Of the model.
        ids: `(response_length,)` tokens without the padding behind them.
        special_tokens: Calls are written with special tokens (`Dialect.special_tokens`). Then only those that end the
            response are left out; else all are, as in verl.
    """
    if not special_tokens:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    closing: set[Any] = set()
    for name in ("eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        closing.update(value if isinstance(value, (list, tuple)) else [value])
    end = len(ids)
    while end and int(ids[end - 1]) in closing:
        end -= 1
    return str(tokenizer.decode(ids[:end], skip_special_tokens=False))
