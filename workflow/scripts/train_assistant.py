"""Train an assistant: a student whose model is an artifact, because it teaches others."""

import shutil
from pathlib import Path

import unpack
from angelshare.files import publish_json
from angelshare.part_jobs import PartJob, part_job
from angelshare.plans import ASSISTANT
from angelshare.train_job import train_planned


def main(job: PartJob) -> None:
    """Train the assistant as a run of the grid would be, and commit its model folder."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.teacher.models import load_tokenizer

    context = job.context
    run = context.study.assistants[job.plan.key]
    checkpoints = Path(context.config.results, "checkpoints", job.plan.key)
    # Where every node sees it, as the checkpoints are.
    folder = checkpoints.with_name(f"{job.plan.key}.made")
    out = folder / "model"
    record = train_planned(context, run, out, checkpoints)
    context.making.tokenizer(load_tokenizer(out))
    context.making.device()
    publish_json(out / "training.json", record)
    job.commit({path.name: path for path in sorted(out.iterdir())})
    for done in (folder, checkpoints):
        shutil.rmtree(done)


with part_job("model", stage=ASSISTANT.stage, **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
