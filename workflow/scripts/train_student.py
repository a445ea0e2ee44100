"""Train one student of the grid."""

from pathlib import Path

import unpack
from angelshare.files import publish_json
from angelshare.jobs import JobContext, job, planned_run


def main(context: JobContext) -> None:
    """Train, publish the model folder, and record the run as a consumer of what it read."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.student.train import TrainRequest, train_student

    run = planned_run(context, snakemake.wildcards.run)
    dataset = run.inputs["dataset"]
    with context.tokenizer(run) as (tokenizer, revision):
        result = train_student(
            TrainRequest(
                init=context.config.students[run.student].init,
                training=run.training,
                loss=run.loss,
                tokenizer=tokenizer,
                tokenizer_revision=revision,
                train=context.rows(run.inputs.get("corpus", dataset), run.recipe["splits"]),
                validation=context.rows(dataset, ["validation"]),
                cache=context.read(run.inputs["logits"]) if "logits" in run.inputs else (),
                seed=run.seed,
                out=Path(snakemake.output.model),
                checkpoints=Path(context.config.results, "checkpoints", run.key),
            ),
            context.report,
            context.window.count,
        )
    context.record_consumer(run, run.upstream(), result.trained_tokens)
    publish_json(Path(snakemake.output.training), {"recipe": run.recipe, **result.to_json()})


with job(
    stage="student_train",
    role="student",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run},
    **unpack.common(snakemake),
) as context:
    main(context)
