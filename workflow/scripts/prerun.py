"""Look at the machine before anything runs: what it is, what it draws idle, its meters."""

from pathlib import Path

import unpack
from angelshare.energy.prerun import idle_baseline, machine_snapshot
from angelshare.files import publish_json
from angelshare.jobs import job

IDLE_S = 3.0

with job(
    stage="prerun",
    role="prerun",
    attempts=unpack.attempts(snakemake),
    **unpack.common(snakemake),
) as context:
    found = {**machine_snapshot(), **idle_baseline(IDLE_S, context.config.energy)}
    if any(device["component"].startswith("gpu") for device in found["devices"]):
        # A CUDA context alone draws power: jobs are compared with the idle state they sit in.
        found["with_context"] = idle_baseline(IDLE_S, context.config.energy, "context_open")
    for line in found["verdict"]:
        context.report.say(line)
    publish_json(Path(snakemake.output.machine), found)
