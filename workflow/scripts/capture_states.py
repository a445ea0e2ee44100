"""Cache the teacher's hidden states over one part of a dataset or corpus."""

import unpack
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Run the teacher over this part's rows and commit the cache."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.state_capture import capture_states

    context = job.context
    rows, share = job.sequences()
    path = context.scratch / "states.parquet"
    with context.teacher(job.plan) as (model, options):
        stats = capture_states(
            model,
            rows,
            job.plan.settings,
            path,
            progress=context.report,
            count=context.window.count,
            say=context.report.say,
            share=share,
            journal=job.journal(),
            **options,
        )
    job.commit({path.name: path}, rows=stats.sequences, tokens=stats.targets)


with part_job("states", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
