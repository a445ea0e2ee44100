"""Score records: what every engine and judge says of one metric of one benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import TaskSettings

Progress = Callable[[int, int, str], None]
"""Takes the requests answered, the requests known of and a remark."""
Count = Callable[..., None]
"""Takes work done as keyword arguments: prompt, generated, evaluated (tokens), samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one benchmark."""

    task: str
    """The engine's name of the task or group."""
    metric: str
    """The engine's name: ``exact_match``, ``acc_norm``, ``length_controlled_winrate``."""
    filter: str = "none"
    """How the answer was read off the text; ``none`` where there is one way."""
    value: float
    """Mean over problems, in the metric's own unit."""
    stderr: float | None
    """The standard error of ``value``; None where the engine has none."""
    higher_is_better: bool = True
    samples: int
    """Problems."""
    task_version: str
    """The engine's version of the task."""
    few_shot: int = 0
    """Examples before each question; the most of them where subtasks differ."""
    limited: bool = False
    """Whether only the first problems were asked: good for trying things out, not for comparing."""
    chat_template_sha256: str | None = None
    """Of the template the prompts went through; None where there was none."""
    problems_sha256: str | None = None
    """Of the problems asked: scores of one benchmark compare only where it agrees."""
    batch_size: int | None = None
    """Requests of one forward pass."""
    harness: str
    """Name, version and back end of the program that scored."""
    judge: dict[str, Any] | None = None
    """The judge's name, version and settings; None where answers are checked by rule."""
    missing: dict[str, int] = field(default_factory=dict)
    """Problems without a verdict, by reason. They are in no mean."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def benchmark_of(record: Mapping[str, Any]) -> str:
    """The column a score goes to: task, metric and, where there is one, the answer filter."""
    parts = [record["task"], record["metric"], record["filter"]]
    return "_".join(re.sub(r"\W+", "_", part) for part in parts if part != "none")


def counted(records: Iterable[Mapping[str, Any]], tasks: Iterable[TaskSettings]) -> set[str]:
    """The benchmarks (`benchmark_of`) that quality counts: one of each task, higher being better.

    Raises:
        AngelshareError: where a task's choice of metric and filter names no record.
    """
    chosen = {task.task: task for task in tasks}
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    found = set()
    for task, offered in by_task.items():
        asked = chosen.get(task, TaskSettings(task=task))
        one = choose(task, offered, asked.metric, asked.filter)
        if asked.in_quality and one["higher_is_better"]:
            found.add(benchmark_of(one))
    return found


def choose(
    task: str, offered: Iterable[Mapping[str, Any]], metric: str | None, answer_filter: str | None
) -> Mapping[str, Any]:
    """The first record with this metric and filter; None takes any."""
    offered = list(offered)
    for record in offered:
        if metric in (None, record["metric"]) and answer_filter in (None, record["filter"]):
            return record
    known = ", ".join(f"{one['metric']} ({one['filter']})" for one in offered)
    wanted = " with filter ".join(name for name in (metric, answer_filter) if name)
    raise AngelshareError(
        f"evaluation.tasks: {task} has no {wanted}; its metrics and filters are {known}"
    )
