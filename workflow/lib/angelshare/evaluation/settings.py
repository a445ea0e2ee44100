"""Settings of the evaluation stage: which tasks, asked how."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from angelshare.settings import Settings

TASKS_FOLDER = Path(__file__).parent / "tasks"
OWN_TASKS = frozenset(path.stem for path in TASKS_FOLDER.glob("*.yaml"))
"""Tasks of this project's own; they ask the test split of a run's dataset."""


class EvaluationSettings(Settings):
    """How a model is scored through lm-evaluation-harness; greedy unless a task says otherwise."""

    execution = frozenset({"batch_size", "task_folder"})

    tasks: list[str] = Field(default=["word_problems"], min_length=1)
    """Harness task names: this project's ``word_problems`` or any of the harness's own
    (``gsm8k``, ``mmlu``, ``ifeval``, …)."""
    task_folder: str | None = None
    """A folder of further harness tasks (YAML files and their data). Recipes know it by the content
    of its files."""
    batch_size: int = Field(default=1, gt=0)
    """Requests of one forward pass."""
    max_gen_toks: int | None = Field(default=None, gt=0)
    """Tokens an answer may have; null leaves it to the task."""
    few_shot: int | None = Field(default=None, ge=0)
    """Examples before each question; null leaves it to the task."""
    chat_template: bool = True
    """Whether prompts go through the tokenizer's chat template."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first problems of each task: for trying things out, not for scores."""
