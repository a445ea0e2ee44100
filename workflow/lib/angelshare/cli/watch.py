"""Looking at a study while it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from angelshare.cli.common import CONFIG, ConfigOption, app, out, read_config
from angelshare.errors import AngelshareError


@app.command("status")
def status_command(
    every_s: Annotated[
        float | None, typer.Option("--every", help="Look again every so many seconds.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Also write status.html.")] = False,
    config: ConfigOption = CONFIG,
) -> None:
    """Say where the study stands: done, running, reused, failed, energy so far, time left."""
    from angelshare.grid import plan_study
    from angelshare.progress.page import write_page
    from angelshare.progress.study import STATES, Reader
    from angelshare.progress.watch import failure

    checked = read_config(config)
    reader = Reader(checked, plan_study(checked), checked.store.open())
    while True:
        progress = reader.read()
        table = Table("", *STATES, box=None)
        for rule in dict.fromkeys(task.rule for task in progress.tasks):
            counts = [progress.count(state, frozenset({rule})) for state in STATES]
            table.add_row(rule, *(str(count) if count else "" for count in counts))
        out.print(table)
        for task in progress.tasks:
            if task.state == "running":
                out.print(f"running: {task.name} on {task.attempts[-1].host}", highlight=False)
            elif task.state == "failed":
                out.print(failure(task, task.attempts[-1], None), highlight=False, soft_wrap=True)
        out.print(progress.summary(), highlight=False, soft_wrap=True)
        if html:
            path = Path(checked.results, "status.html")
            write_page(progress, [], path)
            out.print(f"wrote {path}", highlight=False)
        if every_s is None:
            return
        time.sleep(every_s)


@app.command("cluster")
def cluster_command(config: ConfigOption = CONFIG) -> None:
    """List this folder's Slurm jobs: state, likely cause of an end, logs, and the way out."""
    import shutil

    from angelshare.grid import plan_study
    from angelshare.progress.cluster import cluster_jobs
    from angelshare.progress.study import Reader

    if shutil.which("squeue") is None:
        raise AngelshareError("there is no squeue here: run this on the cluster's login node.")
    checked = read_config(config)
    progress = Reader(checked, plan_study(checked), checked.store.open()).read()
    attempts = [attempt for task in progress.tasks for attempt in task.attempts]
    jobs = [job for job in cluster_jobs(Path(), attempts) if job.state != "COMPLETED"]
    for job in jobs:
        out.print(str(job), highlight=False, soft_wrap=True)
        if job.stuck:
            out.print(
                "  If a Snakemake still waits for it: interrupt it (Ctrl-C), start it again.",
                highlight=False,
            )
    if not jobs:
        out.print("No Slurm job of this folder runs, waits or failed.")
