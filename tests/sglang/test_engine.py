"""SGLang alone: tokens in, tokens and log-probs out, and weights that another process sends.

What it says is compared with what transformers computes from the same weights in the same precision, so that a wrong
kernel, a wrong position or a weight that did not arrive shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.timeout(900)

PROMPT = "<|im_start|>user\nHow will the weather in Oslo be?<|im_end|>\n<|im_start|>assistant\n"
TOKENS = 12


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[sglang.Engine]:
    engine = sglang.Engine(
        model_path=str(smollm2),
        device="cpu",
        dtype="float32",
        attention_backend="torch_native",
        skip_tokenizer_init=True,
        disable_cuda_graph=True,
        max_total_tokens=4096,
        max_running_requests=8,
        sleep_on_idle=True,
        skip_server_warmup=True,
        log_level="error",
    )
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(smollm2: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(smollm2)(PROMPT, add_special_tokens=False)["input_ids"]


def generate(engine: sglang.Engine, prompt: list[int], **sampling: Any) -> tuple[list[int], list[float]]:
    answer = engine.generate(
        input_ids=prompt, sampling_params={"max_new_tokens": TOKENS, **sampling}, return_logprob=True
    )
    found = answer["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in found] == answer["output_ids"]
    return answer["output_ids"], [logprob for logprob, _, _ in found]


def logprobs_of(model: Any, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_greedy_tokens_and_their_logprobs_are_those_of_the_model(
    engine: sglang.Engine, reference: Any, prompt: list[int]
) -> None:
    tokens, logprobs = generate(engine, prompt, temperature=0.0)
    wanted = reference.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[0, len(prompt) :]
    assert wanted.tolist()[: len(tokens)] == tokens
    torch.testing.assert_close(torch.tensor(logprobs), logprobs_of(reference, prompt, tokens), atol=1e-3, rtol=0)


def test_logprobs_of_sampled_tokens_are_after_the_temperature(
    engine: sglang.Engine, reference: Any, prompt: list[int]
) -> None:
    tokens, logprobs = generate(engine, prompt, temperature=0.7)
    expected = logprobs_of(reference, prompt, tokens, temperature=0.7)
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-3, rtol=0)


def test_a_request_stops_at_a_token_id(engine: sglang.Engine, prompt: list[int]) -> None:
    """The only stop that both engines understand when the tokenizer stays outside the engine."""
    tokens, _ = generate(engine, prompt, temperature=0.0)
    cut, _ = generate(engine, prompt, temperature=0.0, stop_token_ids=[tokens[4]])
    assert tokens[: tokens.index(tokens[4]) + 1] == cut


def test_weights_that_are_sent_are_the_weights_that_generate(
    engine: sglang.Engine, reference: Any, prompt: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05 * weight.std())
    tokens, stale = generate(engine, prompt, temperature=0.0)
    assert (torch.tensor(stale) - logprobs_of(reference, prompt, tokens)).abs().max() > 0.1
    # Copies: sending moves a tensor into shared memory, whose keeper is a child process that `shutdown` ends too.
    engine.update_weights_from_tensor(
        [(name, weight.detach().clone()) for name, weight in reference.named_parameters()]
    )
    tokens, fresh = generate(engine, prompt, temperature=0.0)
    torch.testing.assert_close(torch.tensor(fresh), logprobs_of(reference, prompt, tokens), atol=1e-3, rtol=0)
