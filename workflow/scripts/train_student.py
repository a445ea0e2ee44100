"""Train one student of the grid."""

import shutil
from pathlib import Path
from typing import Any

import unpack
from angelshare.files import publish_json
from angelshare.jobs import JobContext, job, planned_run
from angelshare.plans import RunPlan
from angelshare.train_job import record_consumers, train_planned


def main(context: JobContext) -> None:
    """Train unless that was done, publish the record of it."""
    run = planned_run(context, snakemake.wildcards.run)
    folder = Path(snakemake.output.training).parent
    with context.own_result(folder / "finished.json", run.recipe) as record:
        if record is None or not (folder / "model").is_dir():
            record = train(context, run, folder)
    publish_json(Path(snakemake.output.training), record)


def train(context: JobContext, run: RunPlan, folder: Path) -> dict[str, Any]:
    """Train, publish the model folder, and record the run as a consumer of what it read."""
    checkpoints = Path(context.config.results, "checkpoints", run.key)
    record = train_planned(context, run, folder / "model", checkpoints)
    record_consumers(context, run, record)
    publish_json(folder / "finished.json", record)
    shutil.rmtree(checkpoints)
    return record


with job(
    stage="student_train",
    role="student",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run},
    **unpack.common(snakemake),
) as context:
    main(context)
