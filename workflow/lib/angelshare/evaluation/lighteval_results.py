"""What one run of lighteval left: its results file, and its details, one row per problem.

Two things of lighteval 0.13 are mended here. The standard error of a group is that of a mean of
independent means, where lighteval averages the errors; and a metric that one task of a group lacks
is none of the group's, where lighteval takes it as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import TaskSettings
from angelshare.files import read_json


@dataclass(frozen=True, slots=True)
class Results:
    """What one run of lighteval left."""

    metrics: Mapping[str, Mapping[str, float]]
    """By lighteval's name of a task, ``name|shots``, and of groups ``name:_average|shots``."""
    configs: Mapping[str, Mapping[str, Any]]
    """The tasks' definitions, by the same names."""
    details: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """One row per problem: ``doc``, ``model_response`` and ``metric``."""

    @classmethod
    def read(cls, folder: Path) -> Results:
        """From lighteval's output folder; ``AngelshareError`` where it is not whole."""
        found = sorted(folder.rglob("results_*.json"))
        if len(found) != 1:
            raise AngelshareError(f"lighteval left {len(found)} results files instead of one")
        try:
            report = read_json(found[0])
            metrics, configs = report["results"], report["config_tasks"]
        except (ValueError, KeyError) as error:
            raise AngelshareError(f"lighteval's results are not as expected: {error!r}") from None
        date = found[0].stem.removeprefix("results_")
        details = {
            path.stem.removeprefix("details_").removesuffix(f"_{date}"): path
            for path in folder.rglob("details_*.parquet")
        }
        if missing := sorted(configs.keys() - details.keys()):
            raise AngelshareError(f"lighteval left no details of {missing[0]}")
        rows = {name: pq.ParquetFile(path).read().to_pylist() for name, path in details.items()}
        return cls(metrics, configs, rows)

    def subtasks(self, task: TaskSettings) -> list[str]:
        """The tasks that a task or group consists of."""
        name = specification(task)
        if name in self.configs:
            return [name]
        base, _, shots = name.rpartition("|")
        found = [n for n in self.configs if n.startswith(f"{base}:") and n.endswith(f"|{shots}")]
        if not found:
            raise AngelshareError(f"lighteval left no results of {name}")
        return sorted(found)

    def rows(self, task: TaskSettings) -> list[Mapping[str, Any]]:
        """The problems of a task or group."""
        return [row for name in self.subtasks(task) for row in self.details[name]]

    def tokens(self, task: TaskSettings, end: int | None) -> dict[str, int]:
        """What passed through the model, as `angelshare.evaluation.counting` counts it; an answer
        up to its first token ``end``, which is what it is padded with."""
        total = {"samples": 0, "prompt": 0, "generated": 0, "evaluated": 0}
        for row in self.rows(task):
            prompt, outputs = lengths(row, end)
            total["samples"] += 1
            if row["model_response"]["text"]:
                total["prompt"] += prompt
                total["generated"] += sum(outputs)
                total["evaluated"] += prompt + sum(outputs)
            else:
                # Each choice is scored behind the whole prompt.
                total["evaluated"] += prompt * len(outputs) + sum(outputs)
        return total

    def values(self, task: TaskSettings) -> dict[str, tuple[float, float | None]]:
        """Each metric's value and standard error; of a group, over its subtasks alike.

        A metric that a task does not have is none of its group's: lighteval writes 0 for it.
        """
        subtasks = self.subtasks(task)
        found = {}
        for metric in self.metrics[subtasks[0]]:
            if metric.endswith("_stderr") or not all(self._has(n, metric) for n in subtasks):
                continue
            values = [self.metrics[name][metric] for name in subtasks]
            errors = [self.metrics[name].get(f"{metric}_stderr") for name in subtasks]
            known = [error for error in errors if error is not None]
            whole = math.hypot(*known) / len(subtasks) if len(known) == len(subtasks) else None
            found[metric] = sum(values) / len(subtasks), whole
        if not found:
            raise AngelshareError(
                f"{task.task} is a group whose tasks share no metric: name its tasks in "
                "evaluation.tasks"
            )
        return found

    def _has(self, name: str, metric: str) -> bool:
        """Whether a metric is one of this task's own: of its problems, or of all of them."""
        of_problems = any(metric in row["metric"] for row in self.details[name])
        return of_problems or metric in directions(self.configs[name])


def specification(task: TaskSettings) -> str:
    """A task as lighteval's command names it. Its tasks have no number of shots of their own."""
    return f"{task.task}|{task.few_shot or 0}"


def directions(config: Mapping[str, Any]) -> dict[str, bool]:
    """Whether more is better, by metric, from a task's definition."""
    found: dict[str, bool] = {}
    for metric in config["metrics"]:
        name, rising = metric["metric_name"], metric["higher_is_better"]
        if isinstance(rising, Mapping):
            found.update(rising)
        else:
            found |= dict.fromkeys([name] if isinstance(name, str) else name, rising)
    return found


def lengths(row: Mapping[str, Any], end: int | None) -> tuple[int, list[int]]:
    """Tokens of a prompt, and of what followed it: answers, up to ``end``, or choices."""
    reply = row["model_response"]
    prompt = sum(token >= 0 for token in reply["input_tokens"])
    if not reply["text"]:
        # Choices, and their prompt, are padded with -1.
        return prompt, [sum(token >= 0 for token in one) for one in reply["output_tokens"]]
    answers = [list(one) for one in reply["output_tokens"]]
    written = [one.index(end) + 1 if end in one else len(one) for one in answers]
    return prompt - reply["padded_tokens_count"], written
