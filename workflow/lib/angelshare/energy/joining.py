"""Windows of the processes that a job starts, on its own node and on others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from angelshare.energy.enclosing import ENCLOSING, enclosing
from angelshare.energy.machine import run_of
from angelshare.energy.measures import Baseline
from angelshare.energy.ranks import ranks_folder
from angelshare.energy.settings import EnergySettings
from angelshare.energy.sidecar import Attempt
from angelshare.energy.windows import Job, Window, window
from angelshare.errors import AngelshareError


@contextmanager
def rank_window() -> Iterator[Window]:
    """Measure the body as a part of the job whose window is open around it, on any node.

    A job starts its ranks, or one process per node, with its own environment; each measures what it
    sees in such a window, and the job's record includes all of them without counting a device
    twice. Raises AngelshareError where no window is open around this process.
    """
    outer, plan = enclosing()
    if outer is None or plan is None:
        raise AngelshareError(
            f"No window is open around this process: {ENCLOSING} is {outer}. Start it from within "
            "a job's window, and pass that job's environment on to other nodes."
        )
    run = run_of("", None)
    name = f"{run.host}-{os.getpid() if run.rank is None else f'{run.rank:05d}'}"
    folder = ranks_folder(outer)
    record = Attempt.model_validate(plan["record"])
    job = Job(
        rule=record.rule,
        stage=record.stage,
        role=record.role or "other",
        sidecar=folder / f"{name}.json",
        attempts=folder / f"{name}.attempts",
        wildcards=record.wildcards or {},
        seed=record.seed,
        repeat=record.repeat,
        workflow_id=plan["run"]["workflow_id"],
        gpus=0 if plan.get("gpus") == 0 else None,
    )
    here = plan["baseline"] is not None and plan["run"].get("boot_id") == run.boot_id
    baseline = Baseline.model_validate(plan["baseline"]) if here else None
    with window(job, EnergySettings.model_validate(plan["settings"]), None, baseline) as opened:
        yield opened
