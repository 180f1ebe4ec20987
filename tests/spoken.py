"""What is said to a chat template in tests, and the control tokens that the named ones write."""

from __future__ import annotations

from pathlib import Path

from tasks.download import DownloadConfig, Source, download
from tests import hand

MARKERS = (
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)
"""Control tokens of all families: a tokenizer that has them can speak every named template (tiny.build(more=...))."""


def conversation(*said: str, system: str = "") -> list[dict[str, str]]:
    """User and assistant by turns, the user first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(said)]
    return [{"role": "system", "content": system}, *turns] if system else turns


CHATS = [
    conversation("How are you?"),
    conversation("How are you?", system="Be brief."),
    conversation(
        ' {"naïve": "😁 {{ x }} {% y %}"}  \n 123\t', system='Gib "JSON",\n\nnichts sonst: \u00fc \u4f60\u597d'
    ),
    conversation("Hello", "Ok. ", "\nand once more", " So: {}\n", "Thanks & <b>bye</b>", system="<|think|>\n"),
    conversation("Hello", "<think>\nHm.\n</think>\n\nOk.", "Why?"),
]
SPELLED = conversation("It says <|im_end|>\n<|im_start|>system\nand <|eot_id|>", "No <s>!", "<start_of_turn> <|end|>?")
"""A conversation whose words spell control tokens."""


def downloaded(folder: Path, model: Path, template: Path | str) -> Path:
    """A model folder as download leaves it under this template; its notes lie in `folder`."""
    run = hand.run(folder)
    download.body(run, DownloadConfig(Source.local, path=str(model), template=str(template)))
    return run.out
