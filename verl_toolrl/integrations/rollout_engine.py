"""verl's LLM server client as an engine of our loop, for vLLM and SGLang alike.

Both take `max_tokens`, `stop_token_ids`, `temperature`, `top_p`, `top_k`, `repetition_penalty` and `logprobs`; nothing
else is passed but the seed, whose name differs. Stop strings are not used: SGLang runs without a tokenizer. The reason
why an engine stopped is read for one thing only, whether it gave up (vLLM says `aborted`, SGLang `abort`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ray
from verl.workers.rollout.llm_server import LLMServerClient

from verl_toolrl.errors import InfrastructureError
from verl_toolrl.rollout.engine import Generation

__all__ = ["SEED_KEY", "VerlEngine", "is_infrastructure", "request_seed"]

SEED_KEY = {"vllm": "seed", "sglang": "sampling_seed"}
"""Rollout engine -> name of the seed among its sampling parameters."""

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "logprobs", "max_tokens", "stop_token_ids")
_ABORTED = ("aborted", "abort")
_COUNTED = ("spec_num_draft_tokens", "spec_num_accepted_tokens", "spec_num_verify_steps")
# What a dead server, a lost connection or a closed actor looks like from here.
_GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RpcError,
    ConnectionError,
    asyncio.TimeoutError,
)
# What an engine raises that died or failed inside. By name, since vLLM need not be there where the loops run.
_ENGINE_FAILED = {"EngineDeadError", "EngineGenerateError"}
_NO_SERVER = "No available servers"


def is_infrastructure(err: BaseException) -> bool:
    """Return whether an engine's error is nobody's mistake: a dead server or engine, a lost connection, a closed actor.

    An error that a server raised for a request (a parameter it does not know) is somebody's mistake. Ray wraps what was
    raised elsewhere in a `RayTaskError`, so that the cause decides.
    """
    while isinstance(err, ray.exceptions.RayTaskError):
        if not isinstance(err.cause, BaseException) or err.cause is err:
            return False
        err = err.cause
    if isinstance(err, _GONE):
        return True
    if isinstance(err, RuntimeError) and _NO_SERVER in str(err):  # verl's load balancer
        return True
    return any(base.__name__ in _ENGINE_FAILED for base in type(err).__mro__)


def request_seed(*, seed: int, step: int, row: Any, session: int) -> int:
    """Return a seed in [0, 2**31) that depends on all four and on nothing else.

    Args:
        seed: Seed of the run (`actor_rollout_ref.rollout.seed`).
        step: Training step at which the request is sent.
        row: What identifies the row: any JSON-like value, here its index and its messages.
        session: Number of the sample within the group.
    """
    text = json.dumps([seed, step, row, session], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def _said(err: BaseException) -> str:
    """Return the innermost error in a line; Ray's own text begins with the traceback of another process."""
    while isinstance(err, ray.exceptions.RayTaskError) and isinstance(err.cause, BaseException):
        err = err.cause
    return f"{type(err).__name__}: {err}"


class VerlEngine:
    """The engine of one trajectory; gathers what verl's trainer wants to know of its generations.

    Args:
        client: verl's client.
        name: `actor_rollout_ref.rollout.name`.
        seed: Seed of the trajectory; each turn samples from one of its own. None leaves the engine to its own.
        priority: Of vLLM's scheduler.
    """

    def __init__(self, client: LLMServerClient, name: str, *, seed: int | None = None, priority: int = 0) -> None:
        self._client, self._seed_key, self._seed, self._priority = client, SEED_KEY.get(name), seed, int(priority)
        self.turns = 0
        self.preempted = -1
        """How often a generation was preempted; -1 if the engine does not say."""
        self.routed_experts: Any = None
        self.fields: dict[str, Any] = {}
        """`extra_fields` for verl: the weights' versions from the first to the last generation, cached tokens."""

    async def generate(self, prompt_ids: list[int], sampling: Mapping[str, Any], request_id: str) -> Generation:
        """Continue a prompt; see `rollout.engine.Engine`."""
        params = {key: value for key, value in sampling.items() if key in _SAMPLING}
        if self._seed is not None and self._seed_key is not None:
            params[self._seed_key] = (self._seed + self.turns * 1_000_003) % 2**31
        more = {"priority": self._priority} if self._priority else {}
        try:
            output = await self._client.generate(request_id, prompt_ids=prompt_ids, sampling_params=params, **more)
        except Exception as err:
            if is_infrastructure(err):
                raise InfrastructureError(_said(err)) from err
            raise
        self.turns += 1
        self._gather(output)
        return Generation(output.token_ids, output.log_probs or None, output.stop_reason in _ABORTED)

    def _gather(self, output: Any) -> None:
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted
        if output.routed_experts is not None:
            self.routed_experts = output.routed_experts
        new = output.extra_fields
        if not self.fields:
            self.fields = dict(new)
            return
        for key in ("global_steps", "max_global_steps"):
            if new.get(key) is not None:
                self.fields[key] = new[key]
        if self.fields.get("min_global_steps") is None:
            self.fields["min_global_steps"] = new.get("min_global_steps")
        for key in _COUNTED:
            if key in new and key in self.fields:
                self.fields[key] = int(self.fields[key]) + int(new[key])
