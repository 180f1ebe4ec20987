"""How to run what a road made: llama.cpp, Ollama and transformers, with the commands for the very files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.story import Story
from tasks.runtime.store import Manifest


@dataclass
class Beside:
    """What a card lies beside: the files of one artifact, or (nothing given) the report of a run."""

    manifest: Manifest | None = None
    file: str = ""
    """The name a GGUF has there."""

    @property
    def adapter(self) -> bool:
        return self.manifest is not None and "stands_on.json" in self.manifest["files"]

    @property
    def gguf(self) -> bool:
        return self.manifest is not None and self.manifest["kind"] == "GGUF"


def made_from(story: Story) -> dict[str, Any]:
    """Where the base model came from, as its download wrote it down."""
    for manifest in story.of("download"):
        found: dict[str, Any] = json.loads((story.content(manifest) / "origin.json").read_text())
        return {name: value for name, value in found.items() if name != "trust_remote_code"}
    return {}


def base_name(story: Story) -> str:
    """What people call the base model."""
    found = made_from(story)
    for manifest in story.of("download"):
        path = str(found.get("repo") or manifest["config"].get("path") or found.get("file") or found.get("package"))
        name = Path(path).name
        return re.sub(r"(\.[A-Za-z0-9_]+)?\.gguf$", "", name)  # a level is no part of a name
    return "model"


def library(beside: Beside) -> str:
    return "llama.cpp" if beside.gguf else "peft" if beside.adapter else "transformers"


def trained(manifests: list[Manifest]) -> list[Manifest]:
    """The trainings of the model among them: a judge of answers is none."""
    return [manifest for manifest in manifests if manifest["kind"] == "Model" and "method" in manifest["fields"]]


def text(story: Story, beside: Beside) -> str:
    if beside.manifest is None:
        ways = [_llama(story, beside), _transformers(story, beside)]
    elif beside.gguf:
        ways = [_llama(story, beside)]
    else:
        ways = [_peft() if beside.adapter else _transformers(story, beside)]
    told = "Say to it what it was trained on: the same system message and the same kind of question. Answers were\n"
    return told + "measured greedily, at temperature 0.\n\n" + "\n".join(way for way in ways if way)


def modelfile(story: Story, beside: Beside) -> str:
    """Ollama's Modelfile for a GGUF (of a run: its last one), to lie beside it; empty without one."""
    from tasks.llm import gguf, models, ollama

    made = _gguf(story, beside)
    model = next((m for m in reversed(story.manifests) if m["kind"] == "Model"), None)
    if made is None or model is None:
        return ""
    file = gguf.file_in(story.content(made))
    template = str(gguf.metadata(file).get("tokenizer.chat_template", ""))
    return ollama.modelfile(beside.file or file.name, template, models.stop_words(story.content(model)))


def _gguf(story: Story, beside: Beside) -> Manifest | None:
    if beside.manifest is not None:
        return beside.manifest if beside.gguf else None
    return next((m for m in reversed(story.manifests) if m["kind"] == "GGUF"), None)


def _llama(story: Story, beside: Beside) -> str:
    if (made := _gguf(story, beside)) is None:
        return ""
    file = beside.file or next(iter(made["files"]))
    name = "-".join([base_name(story).lower(), *(m["stage"] for m in trained(story.manifests)[-1:])])
    way, recipe = "", "Modelfile"
    if beside.manifest is None:
        digest = made["digest"][:12]
        way = f"python -m flows.store export {digest} {name}/    # the file, its Modelfile, this card\ncd {name}\n"
    elif beside.file:
        recipe = f"{Path(file).stem}.Modelfile"
    return f"""```
{way}llama-cli -m {file} --jinja --temp 0
ollama create {name} -f {recipe} && ollama run {name}
```
```python
from llama_cpp import Llama

llama = Llama("{file}", n_ctx=4096, verbose=False)
messages = [{{"role": "user", "content": "..."}}]
print(llama.create_chat_completion(messages, temperature=0)["choices"][0]["message"]["content"])
```
"""


_TRANSFORMERS = """tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
messages = [{{"role": "user", "content": "..."}}]
asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**asked, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(said[0, asked["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def _transformers(story: Story, beside: Beside) -> str:
    whole = [m for m in story.manifests if m["kind"] == "Model" and "stands_on.json" not in m["files"]]
    made = beside.manifest or (whole[-1] if whole else None)
    if made is None or made["stage"] == "download":
        return ""
    folder = "." if beside.manifest else "merged"
    way = "" if beside.manifest else f"```\npython -m flows.store export {made['digest'][:12]} {folder}/\n```\n"
    return f"""{way}```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
{_TRANSFORMERS.format(tokenizer=folder)}```
"""


def _peft() -> str:
    return f"""The adapter works on the model in `base/` and on no other.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")
{_TRANSFORMERS.format(tokenizer="adapter")}```
"""
