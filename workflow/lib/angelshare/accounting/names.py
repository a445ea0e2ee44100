"""What things are called in sentences, figures and the report."""

from __future__ import annotations

VIEW_NAMES = {"student_only": "student only", "one_off": "one-off", "amortized": "amortised"}
"""The energy views in words."""

KNOWN_PIPELINES = ("sft", "kd", "synthetic_sft", "feature", "relation")
"""Pipelines that have a fixed place and look; others follow by name."""

_STAGES = {
    "preprocess": "preprocessing",
    "teacher_logits": "teacher: logits",
    "teacher_generation": "teacher: generation",
    "teacher_hidden": "teacher: hidden states",
    "teacher_embeddings": "teacher: embeddings",
    "teacher_evaluate": "teacher: evaluation",
    "teacher_online": "teacher: in memory",
    "assistant_train": "assistant: training",
    "student_train": "student training",
    "evaluate": "evaluation",
}

_WRITTEN = {"sft": "SFT", "kd": "KD", "synthetic_sft": "synthetic SFT"}


def pretty(name: str) -> str:
    """A setting or pipeline as people write it: `synthetic_sft small` is `synthetic SFT small`."""
    return " ".join(_WRITTEN.get(word, word.replace("_", " ")) for word in name.split(" "))


def stage_name(stage: str) -> str:
    """A stage as people write it."""
    return _STAGES.get(stage, stage.replace("_", " "))
