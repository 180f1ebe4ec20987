"""Models on disk and in memory. Local paths in, local paths out.

A *policy* is a folder: `full` (transformers loads it) or `adapter` (one PEFT adapter that stands on a full model,
named by digest in `stands_on.json`; its tokenizer lies beside it).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORIGIN = "origin.json"
"""Beside a downloaded model: where it came from, its licence, and whether its own code may run."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "*.tiktoken", ORIGIN),
)


def dtype_of(precision: str) -> Any:
    """The torch dtype of "bf16", "fp16" or "fp32"."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def own_dtype(folder: Path) -> Any:
    """The torch dtype that a full model says its weights are in."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts(folder))
    return config.dtype or torch.float32


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def is_adapter(policy: Path) -> bool:
    return (policy / "adapter_config.json").exists()


def origin(folder: Path) -> dict[str, Any]:
    """What the download stage wrote down about a model."""
    place = folder / ORIGIN
    return dict(json.loads(place.read_text())) if place.exists() else {}


def trusts(folder: Path) -> bool:
    """Whether code that comes with a model may run: only where its download was told so."""
    return bool(origin(folder).get("trust_remote_code"))


def stop_words(folder: Path) -> list[str]:
    """The strings that end an answer of a model folder, the tokenizer's own first; read without loading anything."""
    named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    own = named["content"] if isinstance(named, dict) else named
    told = folder / "generation_config.json"
    ids = json.loads(told.read_text(encoding="utf-8")).get("eos_token_id") if told.exists() else None
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    words = {token["id"]: token["content"] for token in added}
    more = [words[i] for i in (ids if isinstance(ids, list) else [ids]) if i in words]
    return list(dict.fromkeys(word for word in [own, *more] if word))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a pad token (the stop token where the model names none)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts(folder))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(policy: Path, base: Path, precision: str, trainable: bool = False) -> PreTrainedModel:
    """A policy as a causal language model, on the best device.

    For an adapter, `base` is the full model it stands on; for a full model it is ignored. Adapter weights are kept in
    fp32 when `trainable`, since an optimizer's small steps vanish in bf16.
    """
    from transformers import AutoModelForCausalLM

    adapter = is_adapter(policy)
    folder = base if adapter else policy
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype_of(precision), trust_remote_code=trusts(folder), attn_implementation="sdpa"
    )
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(policy), is_trainable=trainable, autocast_adapter_dtype=trainable)
        model.peft_config["default"].base_model_name_or_path = str(base)  # a digest there is looked up on the hub
        if not trainable:
            model = model.to(dtype_of(precision))
    return model.to(best_device())


def multiply_in_bf16(model: Any) -> Any:
    """Have the fp32 weights of adapters multiply as the bf16 weights they stand beside do, under autocast. peft would
    widen what comes in to fp32 first: copies of it for each layer, and products that are several times slower."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = False
    return model


def save(model: Any, out: Path, tokenizer_from: Path, base_digest: str = "") -> None:
    """Write a policy. An adapter records the digest of its base instead of the path PEFT would write."""
    if base_digest:
        model.save_pretrained(out, selected_adapters=["default"])
        (out / "README.md").unlink(missing_ok=True)
        place = out / "adapter_config.json"
        config = json.loads(place.read_text())
        config["base_model_name_or_path"] = base_digest
        config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
        place.write_text(json.dumps(config, indent=2, sort_keys=True))
        (out / "stands_on.json").write_text(json.dumps({"base": base_digest}))
    else:
        model.config.use_cache = True
        model.save_pretrained(out)
    copy_tokenizer(tokenizer_from, out)


def copy_tokenizer(source: Path, out: Path) -> None:
    """The tokenizer, the chat template and the origin note, byte for byte."""
    for place in (found for name in TOKENIZER_FILES for found in source.glob(name)):
        shutil.copyfile(place, out / place.name)


def dequantize(gguf: Path, out: Path, precision: str) -> None:
    """A GGUF as a transformers folder. `save_pretrained` refuses a model that remembers being quantized, so the
    weights move into a fresh one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype_of(precision))
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=dtype_of(precision))
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(out)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token id that ends an answer: the tokenizer's, and those of the model's generation config."""
    named = model.generation_config.eos_token_id
    more = named if isinstance(named, list) else [named]
    return sorted({i for i in [tokenizer.eos_token_id, *more] if i is not None})
