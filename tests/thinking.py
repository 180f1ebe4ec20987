"""A template that thinks: it shows the thinking of the answer to the last question only, as Qwen3's does.

An answer to an earlier question loses its thinking from the conversation, so that rows of several turns are not what
the model met when it gave the earlier ones; the last one is given empty thinking where it has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% set asked = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set asked.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' %}"
    "{% if loop.index0 < asked.last %}{% set said = said.split('</think>')[-1].lstrip('\\n') %}"
    "{% elif '</think>' not in said %}{% set said = '<think>\\n\\n</think>\\n\\n' + said %}{% endif %}"
    "{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + said + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OPENED = TEMPLATE.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
"""The same with thinking that the prompt begins already, as DeepSeek-R1's does."""


def tokenizer(model: Path, template: str = TEMPLATE) -> Any:
    from tasks.llm import models

    found = models.load_tokenizer(model)
    found.chat_template = template
    return found
