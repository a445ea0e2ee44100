"""The models of a study: how large they are, and which of them have to be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from angelshare.config import Config
from angelshare.planning.models import ModelSize, from_shape, hub_snapshot, of_model
from angelshare.planning.records import model_id
from angelshare.plans import Study
from angelshare.student.settings import ScratchStudent
from angelshare.teacher.settings import AssistantTeacher, EmbeddedTeacher, PretrainedTeacher


def study_models(config: Config) -> dict[str, ModelSize | None]:
    """The sizes of the configuration's models, `teacher NAME`, `student NAME` and `judge NAME`."""
    found: dict[str, ModelSize | None] = {}
    for name, teacher in config.teachers.items():
        if isinstance(teacher, EmbeddedTeacher):
            vocabulary = config.tokenizers[teacher.tokenizer].vocab_size
            found[f"teacher {name}"] = from_shape(name, teacher.demo.model_dump(), vocabulary)
        elif isinstance(teacher, PretrainedTeacher):
            found[f"teacher {name}"] = of_model(teacher.model, teacher.revision)
    for name, student in config.students.items():
        if isinstance(student.init, ScratchStudent):
            vocabulary = config.tokenizers[student.tokenizer].vocab_size if student.tokenizer else 0
            found[f"student {name}"] = from_shape(name, student.init.model_dump(), vocabulary)
        else:
            init = student.init
            model = of_model(init.model, init.revision, init.keep_layers)
            found[f"student {name}"] = _updated(model, student.lora is not None)
    for name, judge in config.judges.items():
        if judge.endpoint is None:
            found[f"judge {name}"] = of_model(judge.model, judge.revision)
    for name, teacher in config.teachers.items():
        if isinstance(teacher, AssistantTeacher):
            found[f"teacher {name}"] = found[f"student {teacher.student}"]
    return found


def _updated(model: ModelSize | None, by_lora: bool) -> ModelSize | None:
    return replace(model, frozen=True) if model is not None and by_lora else model


def recipe_models(study: Study, models: Mapping[str, ModelSize | None]) -> dict[str, ModelSize]:
    """The sizes of pretrained teachers by what recipes say of them."""
    found = {}
    for plan in study.artifacts.values():
        model = models.get(f"teacher {plan.name}")
        if "teacher" in plan.recipe and model is not None:
            found[model_id(plan.recipe["teacher"])] = model
    return found


def downloads(config: Config, study: Study) -> list[str]:
    """Pretrained models of the hub that the study reads and this machine's cache has not."""
    wanted: dict[str, str | None] = {}
    runs = [*study.runs.values(), *study.assistants.values()]
    teachers = {name for run in runs for name in run.teachers}
    for name in sorted(teachers):
        teacher = config.teachers[name]
        if isinstance(teacher, PretrainedTeacher):
            wanted[teacher.model] = teacher.revision
    for name in sorted({run.student for run in runs}):
        init = config.students[name].init
        if not isinstance(init, ScratchStudent):
            wanted[init.model] = init.revision
    for judged in study.judged.values():
        judge = config.judges[judged.settings.judge]
        if judge.endpoint is None:
            wanted[judge.model] = judge.revision
    return [
        name
        for name, revision in wanted.items()
        if not Path(name).expanduser().is_dir() and hub_snapshot(name, revision) is None
    ]
