"""Roll up what everything cost, share the teacher's bill, find frontiers and break-even points."""

from pathlib import Path

import unpack
from angelshare.accounting.tables import write_tables
from angelshare.gather import gather
from angelshare.jobs import job

with job(
    stage="accounting",
    role="other",
    attempts=unpack.attempts(snakemake),
    **unpack.common(snakemake),
) as context:
    study = gather(context.config, context.study, context.store)
    out = Path(snakemake.output.tables[0]).parent
    write_tables(study, context.config.accounting, out)
