"""Cache the teacher's distribution over the target positions of one part of a dataset or corpus."""

import unpack
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Run the teacher over this part's rows and commit the cache."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.logits import capture_logits

    context = job.context
    rows, _ = job.sequences()
    path = context.scratch / "logits.parquet"
    with context.teacher(job.plan) as (model, options):
        stats = capture_logits(
            model,
            rows,
            job.plan.settings,
            path,
            progress=context.report,
            count=context.window.count,
            journal=job.journal(),
            **options,
        )
    job.commit({path.name: path}, rows=stats.sequences, tokens=stats.targets)


with part_job("logits", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
