"""Where the steps of a batch lie: token spans, checked once, and the moves between tokens, steps and sessions.

Token offsets count from the first token of the response, tool responses included:

    responses:      |<- step 0 ->|<- tools ->|<- step 1 ->|<- pad ->|
    response_mask:  | 1 1 1 1 1 1 | 0 0 0 0 0 | 1 1 1 1 1 1 | 0 0 0 0 |
    spans:          [[0, 6], [11, 17], [-1, -1]]

A *session* is one trajectory. Mostly it is one row; where a rollout hands over several outputs of one session (after a
context was cut or rewritten), each output is a row with its own steps, and `session` says which rows belong together.
Returns then flow from row to row, and a group counts the session once.

A row without steps is in no baseline: that is how a trajectory that must teach nothing (padding, or lost to a failure
of infrastructure) is handed over.

Spans are recorded by the rollout. `spans_from_mask` reads them from runs of the mask instead; that is a fallback, since
two steps without a token between them are one run.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from verl_toolrl.errors import ConfigError

__all__ = ["Advantages", "Steps", "group_ids", "pad_steps", "spans_from_mask"]


class Advantages(NamedTuple):
    """What an estimator returns; unpacks like the pair that verl's own estimators return."""

    advantages: torch.Tensor
    """`(batch, response_length)` float; 0 where `response_mask` is 0."""
    returns: torch.Tensor
    """`(batch, response_length)` float; what a critic regresses on, or the return that the advantage came from."""


class Steps:
    """The steps of a batch.

    Args:
        spans: `(batch, max_steps, 2)` integer; token offsets [start, end) of each step in order, -1 where a row has
            fewer steps. A step may be empty (start == end): an engine can return no token.
        response_mask: `(batch, response_length)`; 1 = written by the model and trained, 0 = tool response or padding.
        session: `(batch,)` integer; equal numbers are outputs of one session. None: every row is a session.
        output_index: `(batch,)` integer; order of the rows inside a session. None: order of the batch.

    Raises:
        ConfigError: If shapes disagree, a span overlaps the one before it, is out of order or leaves the response, or a
            step follows padding. The text names row and step.
    """

    def __init__(
        self,
        spans: torch.Tensor,
        response_mask: torch.Tensor,
        *,
        session: torch.Tensor | None = None,
        output_index: torch.Tensor | None = None,
    ) -> None:
        if response_mask.dim() != 2:
            raise ConfigError(f"response_mask: shape {tuple(response_mask.shape)}, wanted (batch, response_length)")
        batch, length = response_mask.shape
        if spans.dim() != 3 or spans.shape[0] != batch or spans.shape[2] != 2 or spans.is_floating_point():
            raise ConfigError(
                f"spans: {spans.dtype} of shape {tuple(spans.shape)}, wanted integers of shape ({batch}, max_steps, 2)"
            )
        for name, ids in (("session", session), ("output_index", output_index)):
            if ids is not None and tuple(ids.shape) != (batch,):
                raise ConfigError(f"{name}: shape {tuple(ids.shape)}, wanted ({batch},)")
        self.spans = spans.to(response_mask.device, torch.int64)
        self.response_mask = response_mask
        self.mask = self.spans[..., 0] >= 0
        """`(batch, max_steps)` bool; True where a row has a step."""
        self._check(length)
        self.sessions = len(response_mask)
        """Number of sessions; `batch` where `session` is None."""
        self._rows: _Rows | None = None
        if session is not None:
            self._rows = _Rows.of(session.to(self.mask.device), output_index, self.mask)
            self.sessions = self._rows.sessions

    def _check(self, length: int) -> None:
        starts, ends = self.spans.unbind(-1)
        if starts.shape[1] == 0:
            return
        before = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
        follows_padding = torch.zeros_like(self.mask)
        follows_padding[:, 1:] = self.mask[:, 1:] & ~self.mask[:, :-1]
        for wrong, why in (
            ((starts < 0) != (ends < 0), "is half padding; both offsets of a missing step are -1"),
            (follows_padding, "follows padding; steps come first, padding last"),
            (self.mask & (ends < starts), "ends before it starts"),
            (self.mask & (ends > length), f"leaves the response of {length} tokens"),
            (self.mask & (starts < before), "overlaps the step before it, or is out of order"),
        ):
            if bool(wrong.any()):
                row, step = (int(value) for value in wrong.nonzero()[0])
                raise ConfigError(f"row {row}, step {step}: span {self.spans[row, step].tolist()} {why}")

    def check_rewards(self, step_rewards: torch.Tensor) -> torch.Tensor:
        """Return `step_rewards` as float, 0 on padding.

        Args:
            step_rewards: `(batch, max_steps)`.

        Raises:
            ConfigError: If the shape is wrong, a reward is not finite, or a reward stands where there is no step.
        """
        if step_rewards.shape != self.mask.shape:
            raise ConfigError(
                f"step_rewards: shape {tuple(step_rewards.shape)} for spans of {tuple(self.mask.shape)} steps"
            )
        rewards = step_rewards.to(self.mask.device)
        rewards = rewards if rewards.is_floating_point() else rewards.float()
        missing = self.mask & ~torch.isfinite(rewards)
        surplus = ~self.mask & (rewards != 0) & ~torch.isnan(rewards)
        for wrong, why in ((missing, "has no finite reward"), (surplus, "has a reward, but the row has no such step")):
            if bool(wrong.any()):
                row, step = (int(value) for value in wrong.nonzero()[0])
                raise ConfigError(f"row {row}, step {step}: {why} ({float(rewards[row, step])})")
        return torch.where(self.mask, rewards, torch.zeros_like(rewards))

    def to_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Give every policy token of a step the step's value: `(batch, max_steps)` -> `(batch, response_length)`.

        Tokens outside all spans and tokens with mask 0 get 0.
        """
        batch, length = self.response_mask.shape
        # Lengths of gap, step, gap, step, ..., tail of each row; the value of a gap is 0.
        starts, ends = (torch.where(self.mask, x, 0) for x in self.spans.unbind(-1))
        reached = torch.cummax(ends, dim=1).values
        before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], dim=1)
        runs = torch.zeros(batch, 2 * values.shape[1] + 1, dtype=torch.int64, device=values.device)
        runs[:, 0:-1:2] = torch.where(self.mask, starts - before, 0)
        runs[:, 1::2] = ends - starts
        runs[:, -1] = length - runs[:, :-1].sum(1)
        filled = torch.zeros(runs.shape, dtype=values.dtype, device=values.device)
        filled[:, 1::2] = torch.where(self.mask, values, torch.zeros_like(values))
        tokens = torch.repeat_interleave(filled.flatten(), runs.flatten(), output_size=batch * length)
        return tokens.view(batch, length).mul_(self.response_mask.to(values.dtype))

    def uncovered_tokens(self) -> int:
        """Number of policy tokens that lie in no step: step estimators train none of them, so it should be 0."""
        covered = self.to_tokens(torch.ones(self.mask.shape, device=self.mask.device))
        return int((self.response_mask.ne(0) & (covered == 0)).sum())

    def first_values(self, values: torch.Tensor) -> torch.Tensor:
        """Return the critic's value of the state before each step: `(batch, response_length)` -> `(batch, max_steps)`.

        verl's `values[:, t]` is the value of the context before token t, so the value before a step stands at its first
        token. 0 where there is no step.
        """
        if values.shape != self.response_mask.shape:
            raise ConfigError(
                f"values: shape {tuple(values.shape)}, wanted that of response_mask {tuple(self.response_mask.shape)}"
            )
        index = self.spans[..., 0].clamp(0, max(values.shape[1] - 1, 0))
        return torch.where(
            self.mask, values.gather(1, index), torch.zeros((), dtype=values.dtype, device=values.device)
        )

    def to_sessions(self, values: torch.Tensor) -> torch.Tensor:
        """Put the steps of all outputs of a session into one row: `(batch, max_steps)` -> `(sessions, all_steps)`."""
        if self._rows is None:
            return values
        table = torch.zeros(self._rows.sessions, self._rows.width, dtype=values.dtype, device=values.device)
        return table.index_put((self._rows.session, self._rows.offset), values[self.mask])

    def to_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Undo `to_sessions`."""
        if self._rows is None:
            return values
        table = torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device)
        table[self.mask] = values[self._rows.session, self._rows.offset]
        return table

    @property
    def session_mask(self) -> torch.Tensor:
        """`(sessions, all_steps)` bool; `mask` after `to_sessions`."""
        return self.to_sessions(self.mask)

    def per_session(self, ids: torch.Tensor, name: str = "group") -> torch.Tensor:
        """Turn one number a row into one number a session: `(batch,)` -> `(sessions,)`.

        Raises:
            ConfigError: If the shape is wrong, or the rows of one session disagree.
        """
        ids = ids.to(self.mask.device)
        if tuple(ids.shape) != self.mask.shape[:1]:
            raise ConfigError(f"{name}: shape {tuple(ids.shape)}, wanted ({len(self.mask)},)")
        if self._rows is None:
            return ids
        table = torch.zeros(self._rows.sessions, dtype=ids.dtype, device=ids.device)
        table[self._rows.of_row] = ids
        if bool((table[self._rows.of_row] != ids).any()):
            row = int((table[self._rows.of_row] != ids).nonzero()[0])
            raise ConfigError(f"row {row}: the outputs of its session have different values of {name}")
        return table


class _Rows(NamedTuple):
    """Where each step of each row stands in the table of its session; steps in the order of `mask.nonzero()`."""

    of_row: torch.Tensor
    session: torch.Tensor
    offset: torch.Tensor
    sessions: int
    width: int

    @classmethod
    def of(cls, session: torch.Tensor, output_index: torch.Tensor | None, mask: torch.Tensor) -> _Rows:
        _, of_row = torch.unique(session, return_inverse=True)
        order = torch.arange(len(session), device=session.device)
        if output_index is not None:
            order = torch.argsort(output_index.to(session.device), stable=True)
        order = order[torch.argsort(of_row[order], stable=True)]
        steps = mask.sum(1)
        # Steps of earlier rows of the same session: a running sum over the sorted rows, less that of earlier sessions.
        sorted_steps, sorted_session = steps[order], of_row[order]
        running = sorted_steps.cumsum(0) - sorted_steps
        count = int(of_row.max()) + 1 if len(of_row) else 0
        first = torch.ones_like(sorted_session, dtype=torch.bool)
        first[1:] = sorted_session[1:] != sorted_session[:-1]
        base = torch.zeros(count, dtype=running.dtype, device=running.device)
        base[sorted_session[first]] = running[first]
        before = torch.zeros_like(steps)
        before[order] = running - base[sorted_session]
        rows, columns = mask.nonzero(as_tuple=True)
        offset = before[rows] + columns
        width = int(offset.max()) + 1 if len(offset) else 0
        return cls(of_row, of_row[rows], offset, count, width)


def pad_steps(
    step_rewards: Sequence[Sequence[float]],
    spans: Sequence[Sequence[tuple[int, int] | None]],
    *,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn lists, one a row, into the padded tensors that `Steps` and the estimators take.

    Args:
        step_rewards: Rewards of each row's steps.
        spans: Token spans of each row's steps (`Step.span`).
        device: Where the tensors go.

    Returns:
        step_rewards `(batch, max_steps)` float32 padded with 0, and spans `(batch, max_steps, 2)` int64 padded with -1.

    Raises:
        ConfigError: If a row has fewer or more rewards than steps, or a step that was never tokenised.
    """
    if len(step_rewards) != len(spans):
        raise ConfigError(f"step_rewards has {len(step_rewards)} rows, spans has {len(spans)}")
    width = max((len(row) for row in spans), default=0)
    rewards = torch.zeros(len(spans), width)
    offsets = torch.full((len(spans), width, 2), -1, dtype=torch.int64)
    for row, (values, places) in enumerate(zip(step_rewards, spans)):
        if len(values) != len(places):
            raise ConfigError(f"row {row}: {len(values)} rewards for {len(places)} steps")
        for step, (value, place) in enumerate(zip(values, places)):
            if place is None:
                raise ConfigError(f"row {row}, step {step}: no span; the trajectory was never tokenised")
            rewards[row, step] = value
            offsets[row, step] = torch.tensor(place)
    return rewards.to(device), offsets.to(device)


def group_ids(uids: Iterable[Hashable] | Any) -> torch.Tensor:
    """Number the groups of a batch by first appearance: verl's `uid` array (text) -> `(batch,)` int64."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(uid, len(numbers)) for uid in uids], dtype=torch.int64)


def spans_from_mask(response_mask: torch.Tensor, *, warn: bool = True) -> torch.Tensor:
    """Read spans from runs of ones: `(batch, response_length)` -> `(batch, max_steps, 2)` int64, padded with -1.

    A fallback for batches without recorded spans: adjacent steps are read as one. Warns unless `warn` is False.
    """
    if warn:
        warnings.warn(
            "step spans are read from runs of response_mask, since none were recorded; steps without a token between "
            "them count as one",
            stacklevel=2,
        )
    mask = torch.nn.functional.pad(response_mask.ne(0).to(torch.int8), (1, 1))
    edges = mask.diff(dim=1)
    rows, starts = (edges == 1).nonzero(as_tuple=True)
    ends = (edges == -1).nonzero(as_tuple=True)[1]
    counts = torch.bincount(rows, minlength=len(mask))
    width = int(counts.max()) if len(counts) else 0
    spans = torch.full((len(mask), width, 2), -1, dtype=torch.int64, device=mask.device)
    slot = torch.arange(len(rows), device=mask.device) - (counts.cumsum(0) - counts)[rows]
    spans[rows, slot, 0], spans[rows, slot, 1] = starts, ends
    return spans
