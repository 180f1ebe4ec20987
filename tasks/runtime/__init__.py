"""How a stage lives: keys, store, processes, tracking. Knows Prefect and MLflow; has never heard of a tensor."""

from tasks.runtime.artifacts import (
    GGUF,
    Artifact,
    Comparison,
    Dataset,
    Metrics,
    Model,
    Preferences,
    RewardModel,
    Tokenizer,
    Tokens,
)
from tasks.runtime.devices import Precision, resolved
from tasks.runtime.keys import Moving, canonical_as, external, free
from tasks.runtime.processes import Run
from tasks.runtime.session import RuntimeConfig, session
from tasks.runtime.stage import stage

__all__ = [
    "GGUF",
    "Artifact",
    "Comparison",
    "Dataset",
    "Metrics",
    "Model",
    "Moving",
    "Precision",
    "Preferences",
    "RewardModel",
    "Run",
    "RuntimeConfig",
    "Tokenizer",
    "Tokens",
    "canonical_as",
    "external",
    "free",
    "resolved",
    "session",
    "stage",
]
