"""The body of a job that trains a planned student: a run of the grid, or an assistant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angelshare.energy.windows import postponed_termination
from angelshare.jobs import JobContext
from angelshare.plans import Lesson, RunPlan, reading_role
from angelshare.teacher.settings import PretrainedTeacher

if TYPE_CHECKING:
    from angelshare.data.answers import AnswerReport
    from angelshare.student.requests import Reading


def train_planned(
    context: JobContext, run: RunPlan, out: Path, checkpoints: Path
) -> dict[str, Any]:
    """Train what ``run`` plans and publish the model folder ``out``; the record of the training.

    An earlier attempt's ``checkpoints`` are gone on from; whoever keeps the result removes them.
    Raises as `angelshare.student.train.train_student` does.
    """
    # Imported inside the window: loading torch costs energy too.
    import pyarrow as pa

    from angelshare.data.answers import merged
    from angelshare.energy.phases import phases_of
    from angelshare.student.launch import train_on
    from angelshare.student.requests import Source, TrainRequest

    student = context.config.students[run.student]
    with (
        context.tokenizer(run) as (tokenizer, revision),
        context.teacher_beside(run) as on_policy,
        ExitStack() as opened,
        phases_of(context.window, context.config.energy.period_s) as phase,
        postponed_termination() as terminated,
    ):
        first, *further = (_learnt(context, run, lesson, opened) for lesson in run.lessons)
        caches, weights = first.caches, list(run.lessons[0].teachers.values())
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
                train=first.rows,
                validation=pa.concat_tables(one.validation for one in (first, *further)),
                states={
                    role: context.read(run.inputs[role])
                    for role in context.config.pipelines[run.pipeline].states
                },
                cache=caches[0] if caches else (),
                other_caches=caches[1:],
                weights=weights if caches else [1.0],
                readings=first.readings,
                further=[
                    Source(
                        train=one.rows,
                        cache=one.caches[0] if one.caches else (),
                        readings=one.readings,
                    )
                    for one in further
                ],
                on_policy=on_policy,
                seed=run.seed,
                out=out,
                checkpoints=checkpoints,
            ),
            context.report,
            context.window.count,
            terminated,
            phase,
        )
    learnt: dict[str, Any] = {}
    if first.answers:
        learnt["answers"] = merged([one.answers for one in (first, *further)]).to_json()
    for share in result.paired:
        context.report.say(f"{share:.1%} of the targets have a partner among the teacher's")
    return {"recipe": run.recipe, **learnt, **result.to_json()}


def record_consumers(context: JobContext, run: RunPlan, record: Mapping[str, Any]) -> None:
    """Note beside each artifact that ``run`` stands on it, with the tokens it read of it."""
    for plan, share in run.shares_of(record["sources"]):
        context.record_consumer(run, [plan], round(record["trained_tokens"] * share))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learnt:
    """What there is to learn from one dataset."""

    rows: Any
    validation: Any
    answers: AnswerReport | None
    """What became of the teacher's answers, where they are what is read."""
    caches: list[list[Path]]
    """The parts of each teacher's logit cache."""
    readings: list[Reading]


def _learnt(context: JobContext, run: RunPlan, lesson: Lesson, opened: ExitStack) -> _Learnt:
    """Read a lesson's artifacts; what has to stay open stays so in ``opened``."""
    dataset, corpus = run.inputs[lesson.role("dataset")], run.inputs.get(lesson.role("corpus"))
    rows, answers = context.rows(corpus or dataset, run.recipe["splits"]), None
    if corpus is not None:
        rows, answers = context.answers(corpus, rows, run.recipe)
    caches = {name: role for name, role in lesson.caches.items() if role in run.inputs}
    return _Learnt(
        rows=rows,
        validation=context.rows(dataset, ["validation"]),
        answers=answers,
        caches=[context.read(run.inputs[role]) for role in caches.values()],
        readings=[
            opened.enter_context(_reading(context, run, role, name))
            for name, role in caches.items()
            if run.loss.by_rank
        ],
    )


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
