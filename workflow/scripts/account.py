"""Roll up what everything cost, share the teacher's bill, find frontiers and break-even points."""

from pathlib import Path

import unpack
from angelshare.jobs import job

with job(
    stage="accounting",
    role="other",
    attempts=unpack.attempts(snakemake),
    **unpack.common(snakemake),
) as context:
    # Imported inside the window: loading costs energy too.
    from angelshare.accounting.tables import write_tables
    from angelshare.gather import gather, outdated, unrecorded
    from angelshare.provenance import licence_warnings

    team = context.config.store.team_id()
    costless = [
        f"{plan.kind} {plan.label} is not here, and no record of what it cost"
        for plan in unrecorded(context.study, context.store)
    ]
    for code, lines in (
        ("licence", licence_warnings(context.config, context.study)),
        ("outdated", outdated(context.study, context.store, team)),
        ("unrecorded", costless),
    ):
        for line in lines:
            context.report.say(f"warning: {line}")
            context.window.warn(code, line)
    write_tables(
        gather(context.config, context.study, context.store),
        context.config.accounting,
        Path(snakemake.output.tables[0]).parent,
        memory=Path(context.config.results, "accounting-memory"),
    )
