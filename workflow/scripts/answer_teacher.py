"""Let the teacher answer a judged benchmark, once for every team that shares the store."""

import unpack
from angelshare.energy.phases import phases_of
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Write the answers as the students do, and commit them."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.evaluation.judged import answer_benchmark

    context = job.context
    path = context.scratch / "answers.parquet"
    with (
        context.teacher(job.plan) as (model, options),
        phases_of(context.window, context.config.energy.period_s) as phase,
    ):
        stats = answer_benchmark(
            model,
            job.plan.settings,
            path,
            progress=context.report,
            count=context.window.count,
            phase=phase,
            journal=job.journal(),
            **options,
        )
    job.commit({path.name: path}, rows=stats.sequences, tokens=stats.generated_tokens)


with part_job("answers", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
