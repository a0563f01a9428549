"""Chat templates of the supported families, as small as they can be and keep what matters, and tokenizers for them.

Written anew after the published templates: Qwen2.5 and Qwen3 (tools in the system message, answers of tools as a user's
turn; Qwen3 leaves out the thoughts before the last question), Hermes 2 Pro (role `tool`), Llama 3.1 (tools in the first
user's message, answers of tools as JSON under `ipython`), and plain ChatML, which knows no tools. All but the last
write `tool_calls` of a message as their models do.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TOOLS = """
{%- macro offer() %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write calls between <tool_call> and </tool_call>.{% endmacro -%}
{%- macro calls(message) %}{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endmacro -%}
"""

_QWEN_TOOL = """
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ message.content }}
</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}
"""

_CHATML_END = "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

QWEN25 = (
    _TOOLS
    + """{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' }}

{{ offer() }}<|im_end|>
{% elif messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first and tools %}
{%- elif message.role in ('system', 'user', 'assistant') %}<|im_start|>{{ message.role }}
{{ message.content }}{{ calls(message) }}<|im_end|>
{% """
    + _QWEN_TOOL.lstrip().removeprefix("{%- ")
    + """{%- endif %}{% endfor %}"""
    + _CHATML_END
)

QWEN3 = (
    _TOOLS
    + """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}{{ offer() }}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{%- elif message.role in ('system', 'user') %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}
{%- set parts = message.content.split('</think>') %}
{%- set said = parts[-1].lstrip('\\n') %}<|im_start|>assistant
{% if parts | length > 1 and loop.index0 > last.question %}<think>
{{ parts[0].split('<think>')[-1].strip('\\n') }}
</think>

{% endif %}{{ said }}{{ calls(message) }}<|im_end|>
{% """
    + _QWEN_TOOL.lstrip().removeprefix("{%- ")
    + """{%- endif %}{% endfor %}"""
    + _CHATML_END
)

HERMES = (
    _TOOLS
    + """{%- if tools %}<|im_start|>system
{{ offer() }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role in ('system', 'user', 'assistant') %}<|im_start|>{{ message.role }}
{{ message.content }}{{ calls(message) }}<|im_end|>
{% elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>tool{% endif %}
<tool_response>
{{ message.content }}
</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}
{%- endif %}{% endfor %}"""
    + _CHATML_END
)

LLAMA3 = """{{ bos_token }}
{%- set first = namespace(shown=not tools) %}<|start_header_id|>system<|end_header_id|>

{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|eot_id|>
{%- for message in messages %}
{%- if message.role == 'system' %}
{%- elif message.role == 'user' and not first.shown %}
{%- set first.shown = true %}<|start_header_id|>user<|end_header_id|>

Answer with JSON calls of these functions.

{% for tool in tools %}{{ tool | tojson }}

{% endfor %}{{ message.content | trim }}<|eot_id|>
{%- elif message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{% if message.content is mapping or message.content is iterable %}{{ message.content | tojson }}
{%- else %}{{ message.content }}{% endif %}<|eot_id|>
{%- elif message.tool_calls %}
{%- set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    + _CHATML_END
)

TEMPLATES = {"qwen2.5": QWEN25, "qwen3": QWEN3, "hermes": HERMES, "llama3": LLAMA3, "chatml": CHATML}


def make_tokenizer(family: str) -> Any:
    """A tokenizer of bytes that some merges make longer, with the family's control tokens and template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "o"), ("to", "o"), ("too", "l"), ("Ċ", "Ċ"), ("<", "o"), (">", "Ċ"), ("Ċ", "<")]
    words = [*alphabet, *(left + right for left, right in merges)]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if family == "llama3":
        special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token=special[0],
            # The tokenizer's own end is not the one with which the template ends a message.
            eos_token="<|end_of_text|>",
            additional_special_tokens=[*special[1:], "<|python_tag|>"],
        )
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            additional_special_tokens=["<|im_start|>"],
        )
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer
