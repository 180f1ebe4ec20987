"""A trainer's own knobs: names, types and defaults, read from the installed library's source without importing it.

Importing TRL takes seconds; a config must be checked, cast and keyed before that. Three families of names: OWNED
(ours, refused under `args` with a word on where they are set), FREE (cadence and workers: no part of a key) and the
rest, which is keyed after a cast to the declared type.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCES = {
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "DPOConfig": ("trl", "trainer/dpo_config.py"),
    "RewardConfig": ("trl", "trainer/reward_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
_STORE = "the work folder of the stage; nothing to set"
_SPLIT = "batch_size (sequences per optimizer step) and runtime.micro_batch"
_CUTOFF = "the cutoff of the stage that encodes (encode, reference, reward_model)"
_REFERENCE = "the reference stage, whose policy stays as it is"
_RANKS = "runtime.ranks and runtime.strategy"
_TRACKING = "MLflow, through MLFLOW_TRACKING_URI"
_PUBLISH = "a publish flow"
OWNED = {
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "save_only_model", "ignore_data_skip"), _STORE),
    **dict.fromkeys(("seed", "data_seed", "full_determinism"), "the stage's seed"),
    **dict.fromkeys(("report_to", "run_name", "project", "trackio_space_id"), _TRACKING),
    **dict.fromkeys(("trackio_bucket_id", "trackio_static_space_id"), _TRACKING),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "use_cpu", "tf32"), "the stage's precision"),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"), _SPLIT),
    **dict.fromkeys(("max_length", "truncation_mode", "packing", "padding_free", "eval_packing"), _CUTOFF),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"), _RANKS),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"), _PUBLISH),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _PUBLISH),
    **dict.fromkeys(("local_rank", "ddp_backend"), _RANKS),
    **dict.fromkeys(("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "chat_template_path"), "encode"),
    **dict.fromkeys(("eos_token", "pad_token", "completion_only_loss", "assistant_only_loss"), "encode"),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "download"),
    **dict.fromkeys(("precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model"), _REFERENCE),
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "load_best_model_at_end"), "the road itself"),
}
POSITIVE = {"learning_rate": 2e-4, "beta": 0.1, "num_train_epochs": 1}
"""What the libraries take as any number, and no training survives: a value that makes sense for each."""
FREE = frozenset(
    (
        *("logging_steps", "logging_first_step", "logging_strategy", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "disable_tqdm", "save_steps", "save_strategy", "save_total_limit"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "skip_memory_metrics"),
        *("dataloader_persistent_workers", "include_num_input_tokens_seen", "eval_strategy", "eval_steps"),
        *("per_device_eval_batch_size", "eval_on_start", "eval_delay", "ddp_timeout", "torch_empty_cache_steps"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
    )
)


@dataclass(frozen=True)
class Knob:
    """One field of a library's config: its annotation as written, and its default where that is a literal."""

    type: str
    default: Any


@functools.cache
def of(config: str) -> dict[str, Knob]:
    """The knobs of a trainer's config class by name, inherited ones included."""
    library, file = _SOURCES[config]
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{library} is not installed: run `make setup`.")
    source = Path(spec.submodule_search_locations[0]) / file
    tree = ast.parse(source.read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == config)
    knobs: dict[str, Knob] = {}
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id in _SOURCES:
            knobs |= of(base.id)
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            knobs[node.target.id] = Knob(ast.unparse(node.annotation), _default(node.value))
    return knobs


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        named = {keyword.arg: keyword.value for keyword in value.keywords}
        value = named.get("default", named.get("default_factory"))
        if isinstance(value, ast.Lambda):
            value = value.body
        if isinstance(value, ast.Name) and value.id == "list":
            return []
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return ast.unparse(value) if value is not None else None


def problems(config: str, args: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the knobs somebody set, each with what to do."""
    known = of(config)
    for name, value in args.items():
        if name in OWNED:
            yield f"args.{name} is not set here: it follows from {OWNED[name]}."
        elif name not in known:
            near = difflib.get_close_matches(name, [k for k in known if k not in OWNED], n=3)
            yield f"args.{name} is no knob of {config}. " + (f"Did you mean {' or '.join(near)}?" if near else "")
        else:
            try:
                fits = cast(known[name], value)
            except (TypeError, ValueError):
                kind = _KINDS.get(known[name].type.partition(" ")[0], known[name].type)
                yield f"args.{name} is {value!r}, but {config} wants {kind}."
                continue
            if name in POSITIVE and isinstance(fits, int | float) and fits <= 0:
                yield f"args.{name} is {fits}; give a positive number such as {POSITIVE[name]}."


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def cast(knob: Knob, value: Any) -> Any:
    """The value as its declared type: 3 under a float is 3.0, 3.0 under an int is 3. Raises ValueError or TypeError."""
    kinds = set(re.findall(r"\w+", knob.type))
    if value is None:
        if "None" not in kinds and knob.default is not None:
            raise TypeError(value)
        return value
    if isinstance(value, str):
        if not kinds - {"int", "float", "bool", "None"}:
            raise TypeError(value)
        return [value] if knob.type.startswith("list[str]") else value  # as TRL itself reads a lone name
    if isinstance(value, list | dict):
        if type(value).__name__ not in kinds:
            raise TypeError(value)
        return [float(item) for item in value] if knob.type.startswith("list[float]") else value
    if isinstance(value, bool):
        if not kinds & {"bool", "str"}:
            raise TypeError(value)
        return value
    return _number(kinds, value)


def _number(kinds: set[str], value: float) -> float:
    if "float" in kinds:
        return float(value)
    if "int" not in kinds:
        raise TypeError(value)
    if not float(value).is_integer():
        raise ValueError(value)
    return int(value)


def keyed(config: str, args: dict[str, Any]) -> dict[str, Any]:
    """What of `args` is part of a key: set to something else than the library's default, cast, FREE names left out."""
    known = of(config)
    cast_args = {name: cast(known[name], value) for name, value in args.items() if name in known and name not in FREE}
    return {name: value for name, value in cast_args.items() if value != _cast_default(known[name])}


def _cast_default(knob: Knob) -> Any:
    try:
        return cast(knob, knob.default)
    except (TypeError, ValueError):
        return knob.default
