"""What jobs ask of a machine or cluster, by the name of their rule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from angelshare.settings import Settings


class JobResources(Settings):
    """What the jobs of one rule ask for, where it is not what the others ask for."""

    gpus: int | None = Field(default=None, ge=0)
    """GPUs of a job; null: those of ``hardware.gpus`` where it runs a model, else none."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of a job."""
    memory_mb: int | None = Field(default=None, gt=0)
    """Main memory of a job's first attempt, in MB."""
    runtime_min: int | None = Field(default=None, gt=0)
    """Longest run of a job's first attempt, in minutes."""


RuleName = Literal[
    "prerun",
    "prepare_dataset",
    "train_tokenizer",
    "report_overlap",
    "demo_teacher",
    "capture_logits",
    "capture_states",
    "generate_corpus",
    "evaluate_teacher",
    "answer_teacher",
    "judge_teacher",
    "seal",
    "fetch",
    "train_student",
    "evaluate_student",
    "answer_student",
    "judge_student",
    "account",
    "frontiers",
]
MODEL_RULES = frozenset(
    {
        "demo_teacher",
        "capture_logits",
        "capture_states",
        "generate_corpus",
        "evaluate_teacher",
        "train_student",
        "evaluate_student",
        "answer_teacher",
        "judge_teacher",
        "answer_student",
        "judge_student",
    }
)
"""The rules whose jobs run a model, as far as that is up to the rule."""
JUDGE_RULES = frozenset({"judge_teacher", "judge_student"})
"""Those that run none where all judges are remote."""


class HardwareSettings(Settings):
    """What a job asks of the machine or cluster; none of it enters a recipe but ``part_rows``."""

    gpus: int = Field(default=0, ge=0)
    """GPUs of each job that runs a model; 0 on a machine without one."""
    threads: int = Field(default=1, gt=0)
    """CPU threads of each job that runs a model."""
    memory_mb: int = Field(default=8000, gt=0)
    """Main memory of a job's first attempt, in MB; a retry gets it once more."""
    runtime_min: int = Field(default=120, gt=0)
    """Longest run of a job's first attempt, in minutes; a retry gets it once more."""
    rules: dict[RuleName, JobResources] = {}
    """What the jobs of single rules ask for instead, by the rule's name."""
    part_rows: int = Field(default=2500, gt=0)
    """Rows of one part of a logit cache, corpus or cache of hidden states: one job."""

    def of(self, rule: RuleName, runs_model: bool) -> JobResources:
        """What the first attempt of a job of this rule asks for, nothing left open."""
        common = {
            "gpus": self.gpus if runs_model else 0,
            "threads": self.threads if runs_model else 1,
            "memory_mb": self.memory_mb,
            "runtime_min": self.runtime_min,
        }
        own = self.rules.get(rule, JobResources()).model_dump(exclude_none=True)
        return JobResources(**{**common, **own})
