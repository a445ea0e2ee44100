"""Cache the teacher's distribution over the target positions of one part of a dataset or corpus."""

import unpack
from angelshare.jobs import PartJob, part_job
from angelshare.teacher.settings import CaptureSettings


def main(job: PartJob) -> None:
    """Run the teacher over this part's rows and commit the cache."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.data.tokenizer import tokenizer_digest
    from angelshare.teacher.logits import capture_logits
    from angelshare.teacher.models import load_tokenizer

    context = job.context
    rows = job.slice(context.rows(job.plan.inputs["sequences"], job.plan.recipe["splits"]))
    path = context.scratch / "logits.parquet"
    with context.teacher(job.plan) as (model, revision):
        stats = capture_logits(
            model,
            rows,
            CaptureSettings.model_validate(job.plan.recipe["capture"]),
            path,
            progress=context.report,
            count=context.window.count,
            revision=revision,
        )
        tokenizer = tokenizer_digest(load_tokenizer(model, revision=revision))
    job.commit(
        {path.name: path},
        rows=stats.sequences,
        tokens=stats.targets,
        facts={"tokenizer_sha256": tokenizer},
    )


with part_job("logits", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
