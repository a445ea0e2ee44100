"""Draw the figures, state the findings, write the report and the students' model cards."""

from pathlib import Path

import unpack
from angelshare.files import publish_bytes, read_json
from angelshare.jobs import job

with job(
    stage="accounting",
    role="other",
    attempts=unpack.attempts(snakemake),
    **unpack.common(snakemake),
) as context:
    # Imported inside the window: loading the drawing library costs energy too.
    from angelshare.accounting.findings import headlines
    from angelshare.accounting.tables import read_tables
    from angelshare.gather import outdated
    from angelshare.provenance import licence_warnings
    from angelshare.report.figures import write_figures
    from angelshare.report.html import write_report
    from angelshare.report.model_card import hardware_of, write_cards

    tables = read_tables(Path(snakemake.input.tables[0]).parent)
    write_figures(tables, Path(snakemake.output.figures[0]).parent)
    team = context.config.store.team_id()
    facts = {"Team": team, "Store": context.config.store.root}
    warnings = [
        *licence_warnings(context.config, context.study),
        *outdated(context.study, context.store, team),
    ]
    if warnings:
        facts["Warnings"] = "; ".join(warnings)
    write_report(tables, Path(snakemake.output.report), facts=facts)
    hardware = hardware_of(read_json(Path(snakemake.input.machine)))
    write_cards(tables, context.config, context.study, hardware)
    lines = "".join(f"{line}\n" for line in headlines(tables))
    publish_bytes(Path(snakemake.output.findings), lines.encode())
