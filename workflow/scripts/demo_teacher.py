"""Train the embedded teacher on generated problems that no dataset of the study contains."""

from pathlib import Path

import unpack
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Train the teacher of the recipe and commit its model folder."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.demo import train_demo_teacher
    from angelshare.teacher.models import load_tokenizer

    context = job.context
    out = context.scratch / "model"
    teacher = job.plan.settings
    with context.folder(job.plan.inputs["tokenizer"]) as tokenizer:
        context.making.tokenizer(load_tokenizer(tokenizer))
        context.making.device()
        train_demo_teacher(
            teacher.demo,
            context.config.datasets[teacher.dataset],
            tokenizer,
            out,
            checkpoints=Path(context.config.results, "checkpoints", job.plan.key),
            progress=context.report,
            count=context.window.count,
        )
    job.commit({path.name: path for path in sorted(out.iterdir())})


with part_job("model", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
