"""Scores of a model, through lm-evaluation-harness: its tasks, its metrics, its standard errors.

A score is exact match, accuracy or whatever the task defines, a mean over problems with the
harness's standard error. Tasks are asked one after the other of one loaded model, each as the
harness's own command would ask it. Task data come from where the task says: the hub, or local files
(``dataset_path: json`` or ``parquet`` with ``data_files``).
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.evaluation.scores import Count, Progress, Score, choose
from angelshare.evaluation.settings import TASKS_FOLDER, EvaluationSettings, TaskSettings
from angelshare.evaluation.templates import chat_template, template_digest
from angelshare.recipes import digest


def evaluate_model(
    model: Path | str,
    settings: EvaluationSettings,
    dataset: pa.Table | None,
    progress: Progress,
    count: Count,
    phase: Phase = unmetered,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantised: str | None = None,
) -> list[Score]:
    """Score a model folder (or hub model) on the tasks of ``settings``, in their order.

    ``dataset`` is the sequence table of the problems that this project's own tasks ask; ``phase``
    opens the energy window's phases: ``prefill``, ``decode`` and ``score`` (likelihoods) by
    transformers, ``generate`` and ``score`` by vLLM. With ``quantised`` (transformers only) the
    model is run in that precision. Raises ``AngelshareError`` for an unknown
    task, metric or filter, a missing dataset, a missing chat template, or a prompt that leaves no
    room for the answer.
    """
    own = settings.own_tasks
    if own and (dataset is None or dataset.num_rows == 0):
        raise AngelshareError(f"task {own[0]} asks a dataset's test split: there are no rows in it")
    with tempfile.TemporaryDirectory() as scratch, _quiet_harness():
        metadata = {}
        if own:
            metadata["data_file"] = str(Path(scratch) / "test.parquet")
            pq.write_table(dataset, metadata["data_file"])
        manager = _manager(settings, metadata)
        asked = settings.resolved()
        for task in asked:
            _check(manager, task)
        language_model = _engine(
            settings,
            model,
            progress=progress,
            count=count,
            phase=phase,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **({"quantised": quantised} if settings.engine == "transformers" else {}),
        )
        scores = [s for task in asked for s in _ask(language_model, manager, task, settings)]
        if quantised is None:
            return scores
        return [replace(score, harness=f"{score.harness}, {quantised}") for score in scores]


def _manager(settings: EvaluationSettings, metadata: dict[str, str]) -> TaskManager:
    """The tasks there are: the harness's own only where one is wanted, for they take long."""
    folders = [TASKS_FOLDER, *([Path(settings.task_folder)] if settings.task_folder else [])]
    return TaskManager(
        include_path=[str(folder.absolute()) for folder in folders],
        include_defaults=bool(settings.harness_tasks),
        metadata=metadata,
    )


def _engine(settings: EvaluationSettings, model: Path | str, **options: Any) -> Any:
    """The harness's language model; only the back end that is asked for is imported."""
    local = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
    if settings.engine == "vllm":
        from angelshare.evaluation import vllm_engine

        return vllm_engine.load(local, settings.batch_size, **options)
    from angelshare.evaluation import transformers_engine

    return transformers_engine.load(local, settings.batch_size, **options)


def refuse_unknown(settings: EvaluationSettings) -> None:
    """``AngelshareError`` for a task that the harness does not have; takes some ten seconds.

    Said before a study spends a joule. No data are loaded.
    """
    with _quiet_harness():
        manager = _manager(settings, {})
        for name in settings.harness_tasks:
            _check_name(manager, name)


def _check(manager: TaskManager, task: TaskSettings) -> None:
    """Refuse, before a model is loaded, what cannot be asked or counted."""
    name = task.task
    _check_name(manager, name)
    if task.metric is None and task.filter is None:
        return
    loaded = manager.load([name])
    group = loaded["groups"].get(name)
    if isinstance(group, Group):
        return  # its filters are its subtasks'; what it offers is known once they are scored
    choose(name, _offered(loaded["tasks"][name]), task.metric, task.filter)


def _check_name(manager: TaskManager, name: str) -> None:
    if name not in manager.all_tasks:
        alike = get_close_matches(name, manager.all_tasks, n=1)
        meant = f" Did you mean {alike[0]!r}?" if alike else ""
        raise AngelshareError(
            f"evaluation.tasks: lm-evaluation-harness {_version()} has no task {name!r}.{meant}"
        )
    if name in manager.all_tags:
        raise AngelshareError(
            f"evaluation.tasks: {name!r} is a tag of lm-evaluation-harness, which has no score of "
            "its own: name its tasks"
        )


def _offered(task: Any) -> list[dict[str, str]]:
    """The metrics and filters of a task."""
    filters = [one.name for one in getattr(task, "_filters", [])] or ["none"]
    metrics = [one["metric"] for one in task.get_config("metric_list") or []]
    return [{"metric": str(m), "filter": f} for f in filters for m in metrics]


def _ask(
    language_model: Any, manager: TaskManager, task: TaskSettings, settings: EvaluationSettings
) -> Iterator[Score]:
    template = chat_template(language_model.tokenizer, task)
    language_model.task = task.task
    results = simple_evaluate(
        model=language_model,
        tasks=[task.task],
        num_fewshot=task.few_shot,
        limit=task.limit,
        apply_chat_template=template is not None,
        gen_kwargs={"max_gen_toks": task.max_gen_toks} if task.max_gen_toks else None,
        task_manager=manager,
        log_samples=True,
    )
    scores = list(_scores(task, results, template, settings))
    if not scores:
        raise AngelshareError(
            f"{task.task} is a group without a score of its own: name its tasks in evaluation.tasks"
        )
    choose(task.task, [score.to_json() for score in scores], task.metric, task.filter)
    yield from scores


def _scores(
    task: TaskSettings, results: dict[str, Any], template: str | None, settings: EvaluationSettings
) -> Iterator[Score]:
    name = task.task
    values = results["results"].get(name, {})
    subtasks = _subtasks(name, results)
    samples = [one for subtask in subtasks for one in results["samples"].get(subtask, [])]
    problems = sorted({one["doc_hash"] for one in samples})
    for key, value in values.items():
        metric, _, answer_filter = key.partition(",")
        if not answer_filter or metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr,{answer_filter}")
        yield Score(
            task=name,
            metric=metric,
            filter=answer_filter,
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
            higher_is_better=bool(results["higher_is_better"][name][metric]),
            samples=sum(int(results["n-samples"][one]["effective"]) for one in subtasks),
            task_version=str(results["versions"].get(name, "")),
            few_shot=max(int(results["n-shot"].get(one, 0)) for one in subtasks),
            limited=task.limit is not None,
            chat_template_sha256=template_digest(template),
            problems_sha256=digest("angelshare/problems", problems),
            batch_size=settings.batch_size,
            harness=f"lm-evaluation-harness {_version()} ({settings.engine})",
        )


def _subtasks(name: str, results: dict[str, Any]) -> list[str]:
    """The tasks a task or group consists of, groups within groups opened."""
    below = results.get("group_subtasks", {}).get(name)
    if not below:
        return [name]
    return [task for one in below for task in _subtasks(one, results)]


def _version() -> str:
    return importlib.metadata.version("lm-eval")


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Drop the harness's notices and its progress bars, which nothing else can switch off."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
