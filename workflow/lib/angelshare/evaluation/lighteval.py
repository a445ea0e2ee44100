"""Scores through lighteval, which is asked by its own command in an environment of its own.

Its pins and this project's do not agree, so nothing of it is imported here: tasks that are asked
alike go to one process, a child of the job, whose energy is the job's like its own. A prompt that
leaves no room for the answer is an error, where lighteval cuts the one or the other without a word.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.evaluation.lighteval_results import Results, directions, lengths, specification
from angelshare.evaluation.scores import Count, Progress, Score, choose
from angelshare.evaluation.settings import LIGHTEVAL_TASKS, EvaluationSettings, TaskSettings
from angelshare.evaluation.templates import chat_template, template_digest
from angelshare.files import publish_bytes
from angelshare.recipes import digest

PHASE = "evaluate"
"""Of the energy window: from the outside, reading and answering are not told apart."""
LAST_LINES = 12
"""Of lighteval's own words, where it fails."""


def evaluate_model(
    model: Path | str,
    settings: EvaluationSettings,
    progress: Progress,
    count: Count,
    phase: Phase = unmetered,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[Score]:
    """Score a model folder (or hub model) on the tasks of ``settings``, in their order.

    Raises:
        AngelshareError: where the environment is missing, lighteval fails (an unknown task, data
            that cannot be read), the tokenizer has no chat template to go through, a chosen metric
            is not there, or a prompt leaves no room for the answer.
    """
    release = installed(settings)
    reader = _Reader.of(model, revision, trust_remote_code)
    scores: list[Score] = []
    for tasks in asked_together(settings.resolved()):
        template = chat_template(reader.tokenizer, tasks[0])
        names = ", ".join(task.task for task in tasks)
        progress(0, len(tasks), f"tasks, by lighteval: {names}")
        with tempfile.TemporaryDirectory(prefix="lighteval-") as scratch:
            with phase(PHASE):
                _run(Path(scratch), model, settings, tasks, revision, trust_remote_code)
            results = Results.read(Path(scratch, "out"))
        for task in tasks:
            reader.check(task, results)
            count(**results.tokens(task, reader.tokenizer.eos_token_id))
            found = list(_scores(task, results, template, settings, release))
            choose(task.task, [score.to_json() for score in found], task.metric, task.filter)
            scores += found
        progress(len(tasks), len(tasks), f"tasks, by lighteval: {names}")
    order = [task.task for task in settings.tasks]
    return sorted(scores, key=lambda score: order.index(score.task))


def asked_together(tasks: Sequence[TaskSettings]) -> list[list[TaskSettings]]:
    """The tasks by what lighteval takes once per process: the limit, and the chat template."""
    groups: dict[tuple[Any, ...], list[TaskSettings]] = {}
    for task in tasks:
        groups.setdefault((task.limit, task.chat_template), []).append(task)
    return list(groups.values())


def installed(settings: EvaluationSettings) -> str:
    """The release in lighteval's environment; ``AngelshareError`` where there is none."""
    python = settings.lighteval_python
    asked = "import importlib.metadata as m; print(m.version('lighteval'))"
    try:
        said = subprocess.run(
            [python, "-c", asked], capture_output=True, text=True, env=_environment(), check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise AngelshareError(
            f"evaluation.lighteval_python: there is no lighteval at {python}. `make lighteval` "
            "lays out its environment in .lighteval, `python tools/lighteval.py FOLDER` elsewhere"
        ) from None
    return said.stdout.strip()


def refuse_unknown(settings: EvaluationSettings) -> None:
    """``AngelshareError`` for a task that lighteval does not have, or a missing environment."""
    installed(settings)
    code = (
        "import sys; from lighteval.tasks.registry import Registry; "
        "Registry(tasks=sys.argv[1], custom_tasks=sys.argv[2] or None)"
    )
    custom = _custom_tasks(settings)
    tasks = ",".join(specification(task) for task in settings.resolved())
    command = [settings.lighteval_python, "-c", code, tasks, str(custom or "")]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode != 0:
        raise AngelshareError(f"evaluation.tasks: lighteval says: {_last(done.stderr, 1)}")


@dataclass(frozen=True, slots=True)
class _Reader:
    """The model's tokenizer, and how much it reads."""

    tokenizer: Any
    room: int

    @classmethod
    def of(cls, model: Path | str, revision: str | None, trust_remote_code: bool) -> _Reader:
        from angelshare.teacher.models import load_config, load_tokenizer

        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = load_config(model, **options)
        return cls(load_tokenizer(model, **options), config.max_position_embeddings)

    def check(self, task: TaskSettings, results: Results) -> None:
        """Refuse scores of prompts that were cut; lighteval does not say so."""
        for row in results.rows(task):
            prompt, outputs = lengths(row, None)
            size = row["doc"]["generation_size"] if row["model_response"]["text"] else max(outputs)
            if prompt + (wanted := size or 1) > self.room:
                raise AngelshareError(
                    f"{task.task}: a prompt has {prompt} tokens, and a model of {self.room} has "
                    f"room for {self.room - wanted} before the answer: lower its few_shot, or "
                    "train with a larger max_length"
                )


def _run(
    scratch: Path,
    model: Path | str,
    settings: EvaluationSettings,
    tasks: Sequence[TaskSettings],
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Run lighteval's command in ``scratch``; it ends with the caller, whatever ends that one.

    The model's folder is named from within ``scratch``, because lighteval keeps its cache in a
    folder of the model's name: with an absolute path, in the model's own.
    """
    name = str(model)
    if Path(model).is_dir():
        name = "model"
        scratch.joinpath(name).symlink_to(Path(model).absolute())
    parameters = {
        "model_name": name,
        "revision": revision or "main",
        "trust_remote_code": trust_remote_code,
        "batch_size": settings.batch_size,
        "override_chat_template": tasks[0].chat_template,
        "cache_dir": str(scratch / "cache"),
    }
    # JSON is YAML.
    arguments = json.dumps({"model_parameters": parameters})
    publish_bytes(scratch / "model.yaml", arguments.encode())
    custom = _custom_tasks(settings)
    command = [
        *(str(Path(settings.lighteval_python).absolute()), "-m", "lighteval", "accelerate"),
        *("model.yaml", ",".join(map(specification, tasks)), "--output-dir", "out"),
        *("--save-details",),
        *(("--custom-tasks", str(custom)) if custom else ()),
        *(("--max-samples", str(tasks[0].limit)) if tasks[0].limit else ()),
    ]
    said = scratch / "said.txt"
    with said.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=scratch, stdout=stream, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            status = process.wait()
        finally:
            _end(process)
    if status != 0:
        names = ", ".join(task.task for task in tasks)
        raise AngelshareError(
            f"lighteval failed on {names} (status {status}): "
            f"{_last(said.read_text(errors='replace'), LAST_LINES)}"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _scores(
    task: TaskSettings,
    results: Results,
    template: str | None,
    settings: EvaluationSettings,
    release: str,
) -> Iterator[Score]:
    configs = [results.configs[name] for name in results.subtasks(task)]
    rising = {name: one for config in configs for name, one in directions(config).items()}
    rows = results.rows(task)
    problems = sorted(
        [row["doc"]["query"], list(row["doc"]["choices"] or []), str(row["doc"]["gold_index"])]
        for row in rows
    )
    for metric, (value, stderr) in results.values(task).items():
        if not math.isfinite(value):
            raise AngelshareError(f"{task.task}: lighteval's {metric} is {value}")
        yield Score(
            task=task.task,
            metric=metric,
            value=value,
            stderr=stderr,
            higher_is_better=rising.get(metric, True),
            samples=len({(row["doc"]["task_name"], row["doc"]["id"]) for row in rows}),
            task_version=", ".join(sorted({str(config["version"]) for config in configs})),
            few_shot=max(int(config["num_fewshots"]) for config in configs),
            limited=task.limit is not None,
            chat_template_sha256=template_digest(template),
            problems_sha256=digest("angelshare/problems", problems),
            batch_size=settings.batch_size,
            harness=f"lighteval {release} (transformers)",
        )


def _custom_tasks(settings: EvaluationSettings) -> Path | None:
    """The file with further tasks, if there is one."""
    if settings.task_folder is None:
        return None
    path = Path(settings.task_folder, LIGHTEVAL_TASKS).absolute()
    return path if path.is_file() else None


def _environment() -> dict[str, str]:
    """This process's, without what would bring its packages before lighteval's own."""
    kept = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "TOKENIZERS_PARALLELISM": "false"}


def _last(text: str, lines: int) -> str:
    """The last lines of what a program said, without the frames of its traceback."""
    said = [line.strip() for line in text.splitlines()]
    said = [line for line in said if line and not line.startswith(("│", "╭", "╰"))]
    return "\n".join(said[-lines:]) or "nothing"
