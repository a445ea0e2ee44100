"""Train one student of the grid."""

import shutil
from pathlib import Path
from typing import Any

import unpack
from angelshare.energy.windows import postponed_termination
from angelshare.files import publish_json
from angelshare.jobs import JobContext, job, planned_run
from angelshare.plans import RunPlan


def main(context: JobContext) -> None:
    """Train unless that was done, publish the record of it."""
    run = planned_run(context, snakemake.wildcards.run)
    folder = Path(snakemake.output.training).parent
    with context.own_result(folder / "finished.json", run.recipe) as record:
        if record is None or not (folder / "model").is_dir():
            record = train(context, run, folder)
    publish_json(Path(snakemake.output.training), record)


def train(context: JobContext, run: RunPlan, folder: Path) -> dict[str, Any]:
    """Train, publish the model folder, and record the run as a consumer of what it read."""
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
    checkpoints = Path(context.config.results, "checkpoints", run.key)
    with context.tokenizer(run) as (tokenizer, revision), postponed_termination() as terminated:
        result = train_on(
            student.nodes,
            context.config.training_processes(run.student),
            TrainRequest(
                init=student.init,
                training=run.training,
                loss=run.loss,
                tokenizer=tokenizer,
                tokenizer_revision=revision,
                train=rows,
                validation=context.rows(dataset, ["validation"]),
                cache=context.read(run.inputs["logits"]) if "logits" in run.inputs else (),
                states={
                    role: context.read(run.inputs[role])
                    for role in context.config.pipelines[run.pipeline].states
                },
                seed=run.seed,
                out=folder / "model",
                checkpoints=checkpoints,
            ),
            context.report,
            context.window.count,
            terminated,
        )
    context.record_consumer(run, run.upstream(), result.trained_tokens)
    record = {"recipe": run.recipe, **learnt, **result.to_json()}
    publish_json(folder / "finished.json", record)
    shutil.rmtree(checkpoints)
    return record


with job(
    stage="student_train",
    role="student",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run},
    **unpack.common(snakemake),
) as context:
    main(context)
