"""Score one trained student on its dataset's test split."""

from pathlib import Path

import unpack
from angelshare.files import publish_json
from angelshare.jobs import JobContext, job, planned_run


def main(context: JobContext) -> None:
    """Evaluate the student's model folder and publish its scores."""
    # Imported inside the window: loading torch and the harness costs energy too.
    from angelshare.evaluation.harness import evaluate_model

    run = planned_run(context, snakemake.wildcards.run)
    scores = evaluate_model(
        snakemake.input.model,
        context.config.evaluation,
        context.rows(run.inputs["dataset"], ["test"]),
        context.report,
        context.window.count,
    )
    if run.distilled:
        context.record_consumer(run, [run.scores], sum(score.samples for score in scores))
    publish_json(Path(snakemake.output.scores), [score.to_json() for score in scores])


with job(
    stage="evaluate",
    role="eval",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run},
    **unpack.common(snakemake),
) as context:
    main(context)
