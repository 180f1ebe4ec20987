"""Which files of a repo this project can use."""

from __future__ import annotations

from pathlib import Path

from tasks.llm.hub_errors import HubError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
FOREIGN = {".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".gguf", ".mlmodel"}
DATA = {".json", ".jsonl", ".csv", ".parquet"}


def model_files(repo: str, names: list[str]) -> list[str]:
    """The files of the top folder, with safetensors as the only weights. Raises HubError where there are none."""
    # Sub-folders hold copies for other programs (onnx, original, metal ...), "consolidated" is Mistral's own format.
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    weights = [name for name in top if name.endswith(".safetensors")]
    if not weights:
        raise HubError(_no_safetensors(repo, top))
    twice = {name for name in weights if name.startswith("consolidated")}
    skipped = twice if len(twice) < len(weights) else set()
    useless = PICKLES | FOREIGN
    return [n for n in top if n not in skipped and Path(n).suffix not in useless and not n.endswith(".bin.index.json")]


def data_files(repo: str, names: list[str]) -> list[str]:
    """The json, jsonl, csv and parquet files in any folder. Raises HubError where there are none."""
    data = [n for n in names if Path(n).suffix in DATA and not n.startswith(".") and n != "dataset_infos.json"]
    if not data:
        raise HubError(
            f"{repo} has no json, jsonl, csv or parquet file, only {some(names)}. Convert it to one of these, "
            "or look for a revision that has them ('refs/convert/parquet' often does)."
        )
    return data


def some(names: list[str]) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more or "no files"


def _no_safetensors(repo: str, names: list[str]) -> str:
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if pickles:
        return (
            f"{repo} has its weights only as pickle files ({some(pickles)}), and loading a pickle can run any code. "
            "Take a repo or a revision with safetensors, or convert it yourself once and use download=local."
        )
    if ggufs:
        return f"{repo} has only GGUF files ({some(ggufs)}): fetch one of them and use download=gguf with its path."
    return f"{repo} has no safetensors in its top folder, only {some(names)}: take a repo that transformers can load."
