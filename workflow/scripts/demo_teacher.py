"""Train the embedded teacher on generated problems that no dataset of the study contains."""

from pathlib import Path

from snakemake.script import snakemake

import unpack
from angelshare.data.settings import WordProblems
from angelshare.jobs import PartJob, part_job
from angelshare.teacher.demo import train_demo_teacher
from angelshare.teacher.settings import DemoTeacherSettings


def main(job: PartJob) -> None:
    """Train the teacher of the recipe and commit its model folder."""
    context = job.context
    out = context.scratch / "model"
    with context.folder(job.plan.inputs["tokenizer"]) as tokenizer:
        train_demo_teacher(
            DemoTeacherSettings.model_validate(job.plan.recipe["settings"]),
            WordProblems.model_validate(job.plan.recipe["problems"]),
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
