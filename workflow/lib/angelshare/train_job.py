"""The body of a job that trains a planned student: a run of the grid, or an assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from angelshare.energy.windows import postponed_termination
from angelshare.jobs import JobContext
from angelshare.plans import RunPlan


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
    with context.tokenizer(run) as (tokenizer, revision), postponed_termination() as terminated:
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
                seed=run.seed,
                out=out,
                checkpoints=checkpoints,
            ),
            context.report,
            context.window.count,
            terminated,
        )
    return {"recipe": run.recipe, **learnt, **result.to_json()}
