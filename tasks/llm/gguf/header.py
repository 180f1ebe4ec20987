"""What a GGUF file says about itself, read and rewritten without touching its tensors.

A file is: magic, version, two counts, key-value pairs, tensor descriptions (offsets relative to the data), padding,
data. So new keys need no understanding of the tensors: everything behind the keys is copied byte by byte.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tasks.llm import templates

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_BOOLEAN, _STRING, _ARRAY = 7, 8, 9
_CHUNK = 1 << 24


@dataclass
class _Header:
    """The parsed front of a file. `pairs` holds each key's bytes as they stand in the file, `tensors` likewise."""

    version: int
    tensor_count: int
    pairs: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    weights: int = 0
    tensors: bytes = b""
    data: int = 0

    @property
    def alignment(self) -> int:
        return int(self.values.get("general.alignment", 32))


def metadata(path: Path) -> dict[str, Any]:
    """All scalar and string keys of a file, `tokenizer.chat_template` among them; arrays are left out."""
    return _read(path).values


def measure(path: Path) -> dict[str, float]:
    """`size_mb` (10^6 bytes, the whole file) and `bits_per_weight` (tensor data over the number of weights)."""
    header, size = _read(path), path.stat().st_size
    return {"size_mb": size / 1e6, "bits_per_weight": 8 * (size - header.data) / max(header.weights, 1)}


def annotate(source: Path, out: Path, keys: Mapping[str, str | bool]) -> None:
    """Write `source` to `out` with keys added, or replaced where the file has them; tensors stay bit-equal."""
    header = _read(source)
    pairs = {**header.pairs, **{key: _pair(key, value) for key, value in keys.items()}}
    front = _MAGIC + struct.pack("<IQQ", header.version, header.tensor_count, len(pairs))
    front += b"".join(pairs.values()) + header.tensors
    with open(source, "rb") as before, open(out, "wb") as after:
        after.write(front + b"\0" * (-len(front) % header.alignment))
        before.seek(header.data)
        shutil.copyfileobj(before, after, _CHUNK)


def lineage_keys(lineage: list[dict[str, Any]]) -> dict[str, str]:
    """What a file tells of its making. `lineage`: every ancestor stage as {"stage", "recipe", "digest", "config"}.

    `posttrain.lineage` is that list as JSON, `posttrain.version` the layout of these keys; `posttrain.base` and
    `posttrain.data` repeat the digests of what was downloaded and of the data sets, for the eye.
    """
    keys = {
        "posttrain.version": "1",
        "posttrain.lineage": json.dumps(lineage, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    for key, stage in (("posttrain.base", "download"), ("posttrain.data", "preprocess")):
        digests = [str(step["digest"]) for step in lineage if step["stage"] == stage]
        if digests:
            keys[key] = ",".join(digests)
    return keys


def start_keys(path: Path) -> dict[str, bool]:
    """What a file should say otherwise of its start token: that programs put it in front of a text where, and only
    where, its chat template does. Ollama goes by this, and so does llama.cpp; a tokenizer's settings are of another
    mind for some models. No keys where it says so already, has no template or no start token."""
    from jinja2 import TemplateError

    said = metadata(path)
    key, template = "tokenizer.ggml.add_bos_token", said.get("tokenizer.chat_template")
    if not template or "tokenizer.ggml.bos_token_id" not in said:
        return {}
    with contextlib.suppress(TemplateError, TypeError):
        starts = templates.writes_start(template)
        return {} if said.get(key) is starts else {key: starts}
    return {}


def file_in(folder: Path) -> Path:
    """The one GGUF file in an artifact's folder."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(f"{folder} should hold exactly one .gguf file; found: {names}.")
    return found[0]


# Reading


def _read(path: Path) -> _Header:
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is not a GGUF file. Give a file that llama.cpp's converter or quantizer wrote.")
        try:
            return _parse(file)
        except (struct.error, KeyError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is damaged or of an unknown GGUF version ({error!r}). Make it again.") from error


def _parse(file: BinaryIO) -> _Header:
    version, tensor_count, pair_count = _unpack(file, "<IQQ")
    header = _Header(version, tensor_count)
    for _ in range(pair_count):
        start = file.tell()
        key = _string(file)
        kind = _unpack(file, "<I")[0]
        value = _value(file, kind)
        if kind != _ARRAY:
            header.values[key] = value
        header.pairs[key] = _between(file, start)
    start = file.tell()
    for _ in range(tensor_count):
        _string(file)
        dimensions = _unpack(file, "<I")[0]
        header.weights += math.prod(_unpack(file, f"<{dimensions}Q"))
        _unpack(file, "<IQ")  # type and offset
    header.tensors = _between(file, start)
    header.data = file.tell() + -file.tell() % header.alignment
    return header


def _value(file: BinaryIO, kind: int) -> Any:
    """The value at the file's position; an array is stepped over and None."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    inner, count = _unpack(file, "<IQ")
    if inner in (_STRING, _ARRAY):
        for _ in range(count):
            _value(file, inner)
    else:
        file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
    return None


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "<Q")[0]).decode("utf-8", errors="replace")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _between(file: BinaryIO, start: int) -> bytes:
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _pair(key: str, value: str | bool) -> bytes:
    name = struct.pack("<Q", len(key.encode())) + key.encode()
    if isinstance(value, bool):
        return name + struct.pack("<I?", _BOOLEAN, value)
    return name + struct.pack("<IQ", _STRING, len(value.encode())) + value.encode()
