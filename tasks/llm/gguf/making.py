"""Make GGUF files: llama.cpp's own converter from a Hugging Face folder, llama.cpp's own quantizer from there."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tasks.llm.gguf import native
from tasks.llm.gguf.header import metadata

Progress = Callable[[int, int, str], None]

LEVELS = (
    *("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
)
"""Levels that need no importance matrix, largest first."""


def converter(llama_cpp: str = "") -> Path:
    """The folder that holds `convert_hf_to_gguf.py`: a local llama.cpp checkout, or the one that set-up unpacked."""
    folder = Path(llama_cpp).expanduser() if llama_cpp else Path(sys.prefix) / "share" / "llama.cpp"
    if (folder / "convert_hf_to_gguf.py").is_file():
        return folder
    if llama_cpp:
        raise FileNotFoundError(f"No convert_hf_to_gguf.py in '{llama_cpp}'. Give the root of a llama.cpp checkout.")
    raise FileNotFoundError(f"llama.cpp's converter is missing from {folder}. Run `make setup`, which puts it there.")


def converter_code(folder: Path) -> list[Path]:
    """The files of a llama.cpp checkout that decide what its converter writes."""
    parts = [folder / "conversion", folder / "gguf-py" / "gguf"]
    return [folder / "convert_hf_to_gguf.py", *sorted(path for part in parts for path in part.rglob("*.py"))]


def convert(
    folder: Path,
    out: Path,
    log: Path,
    outtype: str = "f16",
    name: str = "posttrain",
    llama_cpp: str = "",
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Convert a full model folder to the GGUF file `out`; the converter's output goes to `log`.

    The same content gives the same bytes wherever `folder` lies. Raises ValueError with what the converter said.
    """
    import llama_cpp as library

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is not a full model. Merge an adapter into its base first.")
    script = converter(llama_cpp) / "convert_hf_to_gguf.py"
    with _neutral(folder) as model, open(log, "w", encoding="utf-8") as output:
        print(f"converter: {llama_cpp or f'of llama-cpp-python {library.__version__}'}", file=output, flush=True)
        command = [sys.executable, str(script), str(model), "--outfile", str(out), "--outtype", outtype]
        code = _follow([*command, "--model-name", name], output, log, progress)
    if code != 0 or not out.is_file():
        raise ValueError(_explain(folder, log, code))


def quantize(
    source: Path, out: Path, level: str, log: Path, progress: Progress = lambda done, total, what: None
) -> None:
    """Write `source` (f32, f16 or bf16) at another level; llama.cpp's log goes to `log`. Same input, same bytes.

    Columns that a K-quant cannot divide into 256s fall back to a larger type, tensor by tensor, as llama.cpp does it.
    """
    import llama_cpp

    if problem := level_problem(level):
        raise ValueError(problem)
    kind = "ALL" if level == "f32" else "MOSTLY"
    wanted: int = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}_{level.upper()}")
    if metadata(source).get("general.file_type") == wanted:
        shutil.copyfile(source, out)
        log.write_text(f"The source is {level} already: copied.\n", encoding="utf-8")
        return
    native.quiet(lambda line: _count(line, progress))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = wanted, native.cores()
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), params)
    log.write_text(native.said(), encoding="utf-8")
    if code != 0:
        raise ValueError(f"llama.cpp cannot quantize {source.name} to {level}:\n{native.last_words()}")


def level_problem(level: str) -> str:
    """What is wrong with a level's name, with the nearest one; "" for a good name."""
    if level in LEVELS:
        return ""
    near = difflib.get_close_matches(level.lower().replace("-", "_"), LEVELS, n=1, cutoff=0.3)
    hint = f"the nearest is '{near[0]}'. All" if near else "choose one of"
    return f"There is no level '{level}'; {hint}: {', '.join(LEVELS)}."


@contextlib.contextmanager
def _neutral(folder: Path) -> Iterator[Path]:
    """The same files under a name that tells nothing: the converter guesses version, size and author from a folder's
    name. Python files stay behind, because some of its model classes run what they find (trust_remote_code)."""
    with tempfile.TemporaryDirectory(prefix="posttrain-") as place:
        model = Path(place) / "model"
        model.mkdir()
        for path in folder.iterdir():
            if path.suffix != ".py":
                (model / path.name).symlink_to(path.absolute())
        yield model


def _environment() -> dict[str, str]:
    """No network, no hash order, and the converter's own gguf package rather than the installed one."""
    kept = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONHASHSEED": "0"}


def _follow(command: list[str], output: IO[str], log: Path, progress: Progress) -> int:
    """Run the converter and return its exit code; its own progress bar in the log drives ours."""
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment()) as child:
        try:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                if bars := re.findall(r"Writing: +(\d+)%", log.read_text(encoding="utf-8", errors="replace")[-2000:]):
                    progress(int(bars[-1]), 100, "% written")
        finally:
            child.kill()
    return child.returncode


def _count(line: str, progress: Progress) -> None:
    """llama.cpp's quantizer begins a line with "[  12/ 272]" for each tensor."""
    if found := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
        progress(int(found[1]), int(found[2]), "tensors")


def _explain(folder: Path, log: Path, code: int) -> str:
    said = log.read_text(encoding="utf-8", errors="replace")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = ", ".join(config.get("architectures") or ["(none named in config.json)"])
    tail = "\n".join(said.splitlines()[-8:])
    advice = f"See {log.name} in the stage's notes."
    if "is not supported" in said:
        advice = f"It does not know the architecture {architecture}: give convert.llama_cpp=<a newer checkout>."
    elif "pre-tokenizer was not recognized" in said:
        advice = "It does not know this tokenizer: give convert.llama_cpp=<a newer checkout> that lists it."
    elif code < 0:
        advice = f"It was killed by signal {-code}; 9 usually means that memory ran out."
    return f"llama.cpp's converter failed (exit code {code}). {advice}\n{tail}"
