"""The body of a job that trains a planned student: a run of the grid, or an assistant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angelshare.energy.windows import postponed_termination
from angelshare.jobs import JobContext
from angelshare.plans import RunPlan, cache_roles, reading_role
from angelshare.teacher.settings import PretrainedTeacher

if TYPE_CHECKING:
    from angelshare.student.requests import Reading


def train_planned(
    context: JobContext, run: RunPlan, out: Path, checkpoints: Path
) -> dict[str, Any]:
    """Train what ``run`` plans and publish the model folder ``out``; the record of the training.

    An earlier attempt's ``checkpoints`` are gone on from; whoever keeps the result removes them.
    Raises as `angelshare.student.train.train_student` does.
    """
    # Imported inside the window: loading torch costs energy too.
    from angelshare.student.launch import train_on
    from angelshare.student.requests import TrainRequest

    student = context.config.students[run.student]
    dataset = run.inputs["dataset"]
    rows = context.rows(run.inputs.get("corpus", dataset), run.recipe["splits"])
    learnt: dict[str, Any] = {}
    if "corpus" in run.inputs:
        rows, answers = context.answers(run.inputs["corpus"], rows, run.recipe)
        learnt["answers"] = answers.to_json()
    caches = [context.read(run.inputs[role]) for role in run.caches]
    with (
        context.tokenizer(run) as (tokenizer, revision),
        ExitStack() as opened,
        postponed_termination() as terminated,
    ):
        readings = [
            opened.enter_context(_reading(context, run, role, name))
            for name, role in cache_roles(run.teachers).items()
            if run.loss.by_rank and role in run.caches
        ]
        result = train_on(
            student.nodes,
            context.config.training_processes(run.student),
            TrainRequest(
                init=student.init,
                lora=student.lora,
                training=run.training,
                loss=run.loss,
                tokenizer=tokenizer,
                tokenizer_revision=revision,
                train=rows,
                validation=context.rows(dataset, ["validation"]),
                states={
                    role: context.read(run.inputs[role])
                    for role in context.config.pipelines[run.pipeline].states
                },
                cache=caches[0] if caches else (),
                other_caches=caches[1:],
                weights=list(run.caches.values()) or [1.0],
                readings=readings,
                seed=run.seed,
                out=out,
                checkpoints=checkpoints,
            ),
            context.report,
            context.window.count,
            terminated,
        )
    for share in result.paired:
        context.report.say(f"{share:.1%} of the targets have a partner among the teacher's")
    return {"recipe": run.recipe, **learnt, **result.to_json()}


@contextmanager
def _reading(context: JobContext, run: RunPlan, role: str, teacher: str) -> Iterator[Reading]:
    """How ``teacher`` read what is in the cache that ``run`` reads in ``role``."""
    from angelshare.student.requests import Reading

    length = context.config.capture.max_length
    entry, planned = context.config.teachers[teacher], run.inputs.get(reading_role(role))
    if planned is not None:
        with context.folder(planned) as folder:
            yield Reading(tokenizer=folder, max_length=length)
    elif isinstance(entry, PretrainedTeacher):
        yield Reading(
            tokenizer=entry.model,
            revision=entry.revision,
            trust_remote_code=entry.trust_remote_code,
            max_length=length,
        )
    else:
        made = context.study.assistants[run.inputs[role].inputs["teacher"].key]
        with context.tokenizer(made) as (tokenizer, revision):
            yield Reading(tokenizer=tokenizer, revision=revision, max_length=length)
