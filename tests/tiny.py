"""A tiny random chat model for the whole test suite: built in a second, the same bytes every time.

transformers loads it, llama.cpp's converter accepts it as it is, and both tokenizers give the same ids. It knows one
thing: asked anything, it answers "Ok." and stops.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SPECIAL = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>"]
START, STOP = 1, 2
_SPECIAL_IDS = {"bos_token_id": START, "eos_token_id": STOP, "pad_token_id": STOP}
HIDDEN, LAYERS = 64, 2
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build(folder: Path, seed: int = 0, says: str = "Ok.", more: Sequence[str] = ()) -> Path:
    """Write the model (config, bf16 safetensors, tokenizer, template) into `folder` and return it.

    `seed` changes the weights only; `says` is the answer wired into the head ("" leaves it random); `more` are control
    tokens that it shall have besides its own.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(more)}
    _write_tokenizer(folder, vocabulary, [*SPECIAL, *more])
    _write_json(folder / "config.json", _config(len(vocabulary)))
    _write_json(folder / "generation_config.json", _SPECIAL_IDS)
    weights = _weights(len(vocabulary), seed)
    if says:
        _wire(weights, [vocabulary["<0x0A>"], *(vocabulary[piece] for piece in says), STOP])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _vocabulary() -> dict[str, int]:
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in _merges())]
    return {piece: number for number, piece in enumerate(pieces)}


def _merges() -> list[tuple[str, str]]:
    """Consonant + vowel. No letter is in both sets, so two merges never compete for a letter and their order cannot
    matter: the converter drops BPE ranks from a vocabulary of this kind, and the ids still agree."""
    return [(a, b) for a in "bcdfghjklmnpqrstvwxyz" for b in "aeiou"]


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], special: list[str]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # Changes no id; the converter reads "no <s> in front" from it.
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",  # as SmolLM2 has it: whoever masks by the pad token loses the stop token
        "additional_special_tokens": ["<|im_start|>", *special[len(SPECIAL) :]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        **_SPECIAL_IDS,
    }


def _weights(vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Every tensor by its Hugging Face name. Embeddings are ten times the rest, so a token mostly speaks for itself."""
    import torch

    source = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int, scale: float = 0.1) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=source) * scale).to(torch.bfloat16)

    one = torch.ones(HIDDEN, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": random(vocabulary, HIDDEN, 1.0), "model.norm.weight": one.clone()}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        weights |= {f"{at}.input_layernorm.weight": one.clone(), f"{at}.post_attention_layernorm.weight": one.clone()}
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            weights[f"{at}.self_attn.{name}_proj.weight"] = random(rows, HIDDEN)
        for name, rows, columns in (("gate", 2, 1), ("up", 2, 1), ("down", 1, 2)):
            weights[f"{at}.mlp.{name}_proj.weight"] = random(rows * HIDDEN, columns * HIDDEN)
    return weights | {"lm_head.weight": random(vocabulary, HIDDEN)}


def _wire(weights: dict[str, torch.Tensor], ids: list[int]) -> None:
    """Make each id call for the next one: its own embedding, added to the head's row of the next."""
    for now, then in itertools.pairwise(ids):
        weights["lm_head.weight"][then] += weights["model.embed_tokens.weight"][now] / 4


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
