"""Greedy responses of a checkpoint by vLLM, in a process of its own:

    python -m verl_toolrl.integrations.vllm_generate JOB.json

The job is `{"model", "output", "max_tokens", "prompts": [{"key", "messages", "tools"}], "engine": {...}}`; `engine`
goes to vLLM as it is. `output` gets a JSON object a line: first `{"about": {...}}`, then `{"key", "text", "finish"}` as
soon as a response is there, so that an interrupted job leaves what it has. A fault of the input ends the process with
exit code 2 and `{"error": "..."}` as the last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

from verl_toolrl.errors import AuthorError, ConfigError

__all__ = ["main", "render"]


def main(path: Path) -> int:
    """Do the job; returns the exit code."""
    job = json.loads(path.read_text(encoding="utf-8"))
    with open(job["output"], "a", encoding="utf-8", buffering=1) as output:
        try:
            prompts = render(job["model"], job["prompts"])
            _generate(job, prompts, output)
        except AuthorError as err:
            _write(output, {"error": str(err)})
            return 2
    return 0


def render(model: str, prompts: list[dict[str, Any]]) -> list[list[int]]:
    """Write prompts with the model's chat template and return their tokens.

    Raises:
        ConfigError: If there is no tokenizer, it has no chat template, or the template fails.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as err:
        raise ConfigError(f"{model}: the tokenizer cannot be loaded ({str(err).splitlines()[0]})") from err
    if not tokenizer.chat_template:
        raise ConfigError(f"{model}: the tokenizer has no chat template, so no prompt can be written for it")
    found = []
    for prompt in prompts:
        try:
            text = tokenizer.apply_chat_template(
                prompt["messages"], tools=prompt["tools"], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, KeyError) as err:
            raise ConfigError(f"{model}: the chat template fails on row {prompt['key']}: {err}") from err
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def _generate(job: dict[str, Any], prompts: list[list[int]], output: IO[str]) -> None:
    longest = max(map(len, prompts)) + job["max_tokens"]
    options = {"max_model_len": longest, "enforce_eager": True, **job["engine"]}
    if _limit(job["model"]) < longest:
        raise ConfigError(
            f"{job['model']}: its context of {_limit(job['model'])} tokens is too small for the longest prompt of "
            f"{max(map(len, prompts))} and a response of {job['max_tokens']}"
        )

    from vllm import LLM, SamplingParams, TokensPrompt, __version__

    engine: Any = LLM(model=job["model"], disable_log_stats=True, **options).llm_engine
    _write(output, {"about": {"engine": f"vllm {__version__}"}})
    sampling = SamplingParams(
        temperature=0.0, max_tokens=job["max_tokens"], skip_special_tokens=not job["special_tokens"]
    )
    for prompt, tokens in zip(job["prompts"], prompts, strict=True):
        engine.add_request(prompt["key"], TokensPrompt(prompt_token_ids=tokens), sampling)
    # Step by step instead of `LLM.generate`, which hands out nothing before the last response is there.
    while engine.has_unfinished_requests():
        for request in engine.step():
            if request.finished:
                answer = request.outputs[0]
                _write(output, {"key": request.request_id, "text": answer.text, "finish": str(answer.finish_reason)})


def _limit(model: str) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as err:
        raise ConfigError(f"{model}: the configuration cannot be loaded ({str(err).splitlines()[0]})") from err
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))


def _write(output: IO[str], content: dict[str, Any]) -> None:
    output.write(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    from verl_toolrl.integrations.chosen_platform import is_cpu_platform

    if is_cpu_platform():
        from verl_toolrl.integrations.cpu import vllm_metadata

        vllm_metadata.install()
    sys.exit(main(Path(sys.argv[1])))
