"""Score the teacher on a dataset's test split, once for every team that shares the store."""

import unpack
from angelshare.energy.phases import phases_of
from angelshare.files import publish_json
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Evaluate the teacher as the students are, and commit its scores."""
    # Imported inside the window: loading torch and the harness costs energy too.
    from angelshare.evaluation.engines import evaluate_model

    context = job.context
    dataset = job.plan.inputs.get("dataset")
    with (
        context.teacher(job.plan) as (model, options),
        phases_of(context.window, context.config.energy.period_s) as phase,
    ):
        scores = evaluate_model(
            model,
            job.plan.settings,
            context.rows(dataset, ["test"]) if dataset else None,
            context.report,
            context.window.count,
            phase=phase,
            **options,
        )
    path = context.scratch / "scores.json"
    publish_json(path, [score.to_json() for score in scores])
    job.commit({path.name: path}, rows=len(scores))


with part_job("scores", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
