"""GGUF, llama.cpp's file format: make files, read and write what they say about themselves, run them."""

from tasks.llm.gguf.engine import Engine
from tasks.llm.gguf.header import annotate, file_in, lineage_keys, measure, metadata, start_keys
from tasks.llm.gguf.making import LEVELS, convert, converter, converter_code, level_problem, quantize

__all__ = [
    "LEVELS",
    "Engine",
    "annotate",
    "convert",
    "converter",
    "converter_code",
    "file_in",
    "level_problem",
    "lineage_keys",
    "measure",
    "metadata",
    "quantize",
    "start_keys",
]
