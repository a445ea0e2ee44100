"""Look at the machine before anything runs: what it is, what it draws idle, its meters."""

from pathlib import Path

import unpack
from angelshare.energy.prerun import look_at_machine, machine_snapshot
from angelshare.files import publish_json
from angelshare.jobs import job
from angelshare.planning.calibration import calibrate

IDLE_S = 3.0

with job(
    stage="prerun",
    role="prerun",
    attempts=unpack.attempts(snakemake),
    **unpack.common(snakemake),
) as context:
    found = {**machine_snapshot(), **look_at_machine(IDLE_S, context.config.energy)}
    # After the idle measurements: a few seconds of work, for the plans of later runs.
    found["calibration"] = calibrate(context.config)
    for line in found["verdict"]:
        context.report.say(line)
    publish_json(Path(snakemake.output.machine), found)
