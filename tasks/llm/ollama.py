"""Ollama's Modelfile: which GGUF, how a prompt is written, where an answer stops.

Ollama renders prompts with Go's text/template, not with the Jinja that the GGUF carries. So a TEMPLATE is written only
where a twin is known to render the same; without one Ollama takes the template of its own that looks most alike.
"""

from __future__ import annotations

import json

from tasks.llm import templates

_NO_TWIN = (
    "# No TEMPLATE: this model's chat template has no known twin in Go, so Ollama guesses one by likeness. Use what\n"
    "# reads the GGUF's own (llama-cli --jinja), or train with a named one (download.template=chatml, say)."
)


def modelfile(gguf: str, template: str, stops: list[str]) -> str:
    """The text of a Modelfile that lies beside the file `gguf` (its name).

    `template`: the chat template's text, as the model folder and the GGUF have it. `stops`: the strings that end an
    answer, the tokenizer's stop token first. Answers are greedy, as the model was scored.
    """
    twin = templates.twin(template, stops[0]) if template and stops else ""
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{twin}"""' if twin else _NO_TWIN]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])
