"""Let the teacher answer the prompts of one part of a dataset."""

import unpack
from angelshare.energy.phases import phases_of
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Generate the answers to this part's prompts and commit them."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.generate import generate_corpus

    context = job.context
    rows = job.slice(context.rows(job.plan.inputs["sequences"], job.plan.recipe["splits"]))
    path = context.scratch / "corpus.parquet"
    with (
        context.teacher(job.plan) as (model, options),
        phases_of(context.window, context.config.energy.period_s) as phase,
    ):
        stats = generate_corpus(
            model,
            rows,
            job.plan.settings,
            path,
            progress=context.report,
            count=context.window.count,
            phase=phase,
            journal=job.journal(),
            **options,
        )
    if stats.unanswered:
        context.report.say(f"{stats.unanswered} prompts left no room for an answer and have none")
    job.commit({path.name: path}, rows=stats.sequences, tokens=stats.generated_tokens)


with part_job("corpus", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
