"""Train the embedded teacher on generated problems that no dataset of the study contains."""

from pathlib import Path

import unpack
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.jobs import PartJob, part_job
from angelshare.teacher.settings import DemoTeacher


def main(job: PartJob) -> None:
    """Train the teacher of the recipe and commit its model folder."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.demo import train_demo_teacher

    context = job.context
    out = context.scratch / "model"
    train_demo_teacher(
        DemoTeacher.model_validate(job.plan.recipe["settings"]),
        WordProblems.model_validate(job.plan.recipe["problems"]),
        TokenizerSettings.model_validate(job.plan.inputs["tokenizer"].recipe["settings"]),
        out,
        checkpoints=Path(context.config.results, "checkpoints", job.plan.key),
        progress=context.report,
        count=context.window.count,
    )
    job.commit({path.name: path for path in sorted(out.iterdir())})


with part_job("model", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
