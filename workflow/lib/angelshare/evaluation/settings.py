"""Settings of the evaluation stage: which tasks, asked how, by which engine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from angelshare.evaluation.judges.settings import AnyJudgedSettings
from angelshare.settings import Settings

TASKS_FOLDER = Path(__file__).parent / "tasks"
OWN_TASKS = frozenset(path.stem for path in TASKS_FOLDER.glob("*.yaml"))
"""Tasks of this project's own; they ask the test split of a run's dataset."""


Engine = Literal["transformers", "vllm", "lighteval"]
"""The harness on transformers, the harness on vLLM, or lighteval, which has transformers alone."""
LIGHTEVAL_TASKS = "lighteval_tasks.py"
"""In ``task_folder``: a Python file with lighteval's TASKS_TABLE of further tasks."""


class TaskSettings(Settings):
    """One task of lm-evaluation-harness or lighteval; what is null is as ``evaluation`` says."""

    task: str = Field(min_length=1)
    """The engine's name of a task or group: this project's ``word_problems``, one in
    ``task_folder``, or any of the engine's own (``gsm8k``, ``mmlu``, ``ifeval``, ``bbh``, …)."""
    engine: Engine | None = None
    """The program that asks it."""
    few_shot: int | None = Field(default=None, ge=0)
    """Examples before each question."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first problems, of each subtask where the task is a group."""
    chat_template: bool | None = None
    """Whether prompts go through the tokenizer's chat template."""
    max_gen_toks: int | None = Field(default=None, gt=0)
    """Tokens an answer may have."""
    metric: str | None = None
    """The metric that quality counts (``exact_match``, ``acc_norm``); null: the task's first."""
    filter: str | None = None
    """The answer filter that quality counts (``strict-match``, ``flexible-extract``); null: the
    first."""
    in_quality: bool = True
    """Whether quality counts this task at all. Scores are recorded all the same: for a benchmark
    that the teacher itself can hardly do, where a ratio of two chances says nothing."""


def _named(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class EvaluationSettings(Settings):
    """How a model is scored, by rule and by judges; greedy unless a task says otherwise."""

    tasks: list[Annotated[TaskSettings, BeforeValidator(_named, json_schema_input_type=Any)]] = (
        Field(default=[TaskSettings(task="word_problems")], min_length=1)
    )
    """The tasks: a name, or a name with settings of its own. Every metric of a task is recorded;
    quality counts one of them."""
    judged: list[AnyJudgedSettings] = []
    """Benchmarks whose answers a judge rates."""
    engine: Engine = "transformers"
    """Who asks: lm-evaluation-harness, through ``transformers`` or ``vllm``, or ``lighteval``,
    which has an environment of its own. Only ``transformers`` tells the energy of prefill and
    decode apart."""
    lighteval_python: str = ".lighteval/bin/python"
    """The interpreter of lighteval's environment, which `make lighteval` lays out."""
    task_folder: str | None = None
    """A folder of further tasks: the harness's YAML files, lighteval's ``lighteval_tasks.py``, and
    their data. Recipes know it by the content of its files."""
    batch_size: int = Field(default=1, gt=0)
    """Requests of one forward pass; with ``vllm`` the most sequences in flight."""
    max_gen_toks: int | None = Field(default=None, gt=0)
    """Tokens an answer may have; null leaves it to the task."""
    few_shot: int | None = Field(default=None, ge=0)
    """Examples before each question; null leaves it to the task."""
    chat_template: bool = True
    """Whether prompts go through the tokenizer's chat template."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first problems of each task: for trying things out, not for scores."""

    @model_validator(mode="after")
    def _asked_once(self) -> EvaluationSettings:
        names = self.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks and judged name {twice[0]} twice: one entry each")
        if not self.judged and not self.counts:
            raise ValueError("no task is in_quality: quality needs one")
        return self

    @model_validator(mode="after")
    def _engines_that_ask(self) -> EvaluationSettings:
        engines = {task.engine or self.engine for task in self.tasks}
        if {"transformers", "vllm"} <= engines:
            raise ValueError(
                "with one back end of the harness: tasks name both transformers and vllm, which "
                "one process cannot run"
            )
        for task in self.for_engine("lighteval").resolved():
            if task.task in OWN_TASKS:
                raise ValueError(f"without engine lighteval for {task.task}: it is the harness's")
            if task.max_gen_toks is not None:
                raise ValueError(
                    f"without max_gen_toks for {task.task}: lighteval would cut its prompts to as "
                    "many tokens; its tasks say how long an answer may be"
                )
        return self

    @property
    def names(self) -> list[str]:
        """Every task and judged benchmark."""
        return [task.task for task in self.tasks] + [one.benchmark for one in self.judged]

    @property
    def own_tasks(self) -> list[str]:
        """The tasks among these that ask the test split of a run's dataset."""
        return [task.task for task in self.tasks if task.task in OWN_TASKS]

    @property
    def harness_tasks(self) -> list[str]:
        """The names of the harness's tasks that are neither this project's own nor in
        ``task_folder``."""
        folder = Path(self.task_folder).glob("*.yaml") if self.task_folder else ()
        local = OWN_TASKS | {path.stem for path in folder}
        asked = {task.task for task in self.for_engine("lighteval").tasks}
        return [task.task for task in self.tasks if task.task not in local | asked]

    @property
    def engines(self) -> list[Engine]:
        """The engines that ask, in the order of their first tasks."""
        return list(dict.fromkeys(task.engine or self.engine for task in self.tasks))

    def for_engine(self, engine: Engine) -> EvaluationSettings:
        """These settings with the tasks of one engine alone."""
        tasks = [task for task in self.tasks if (task.engine or self.engine) == engine]
        return self.model_copy(update={"engine": engine, "tasks": tasks})

    def resolved(self) -> list[TaskSettings]:
        """The tasks with nothing left to this section's defaults."""
        common = {name: getattr(self, name) for name in _COMMON}
        return [
            TaskSettings.model_validate(common | task.model_dump(exclude_none=True))
            for task in self.tasks
        ]

    @property
    def counts(self) -> dict[str, list[str | None]]:
        """The metric and filter of each task that quality counts."""
        return {task.task: [task.metric, task.filter] for task in self.tasks if task.in_quality}

    def without(self, names: Collection[str]) -> EvaluationSettings:
        """These settings without the tasks and judged benchmarks of these names."""
        tasks = [task for task in self.tasks if task.task not in names]
        judged = [one for one in self.judged if one.benchmark not in names]
        return self.model_copy(update={"tasks": tasks, "judged": judged})

    def identity(self) -> dict[str, Any]:
        """What decides a score: the tasks as they are asked, wherever that was said."""
        tasks = []
        for task in self.resolved():
            usual = {"engine"} if task.engine in (None, self.engine) else set[str]()
            tasks.append(task.model_dump(exclude={*_COUNTED, *usual}))
        return {"tasks": tasks, "engine": self.engine}


_COMMON = ("few_shot", "limit", "chat_template", "max_gen_toks")
_COUNTED = ("metric", "filter", "in_quality")
