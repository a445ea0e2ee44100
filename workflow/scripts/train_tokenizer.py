"""Train a tokenizer on generated problems that no dataset of the study contains."""

import unpack
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Train the tokenizer of the recipe and commit its files."""
    # Imported inside the window: loading transformers costs energy too.
    from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer

    settings = job.plan.settings
    tokenizer = problem_tokenizer(settings, job.context.config.datasets[settings.dataset])
    save_tokenizer(tokenizer, job.context.scratch)
    job.context.making.tokenizer(tokenizer)
    job.commit(
        {path.name: path for path in sorted(job.context.scratch.iterdir())},
        rows=len(tokenizer),
    )


with part_job("tokenizer", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
