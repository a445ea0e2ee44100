"""Prepare a dataset: one sequence table, split and subsampled by its seed, and its counts."""

import unpack
from angelshare.part_jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Load the source that the configuration names and commit its rows."""
    from angelshare.data.sources import load_source, stated_licence
    from angelshare.data.tables import write_table
    from angelshare.files import publish_json

    table, counts = load_source(job.plan.settings)
    job.context.making.licence(job.plan, stated_licence(job.plan.settings))
    data, counted = (job.context.scratch / name for name in ("data.parquet", "counts.json"))
    write_table(table, data)
    publish_json(counted, counts.to_json())
    job.context.window.count(samples=table.num_rows)
    dropped = ", ".join(f"{count} with {why}" for why, count in counts.dropped.items()) or "none"
    job.context.report.say(
        f"{table.num_rows} rows of {counts.source_rows}; looked at {counts.examined_rows}, "
        f"left out: {dropped}"
    )
    job.commit({path.name: path for path in (counted, data)}, rows=table.num_rows)


with part_job("dataset", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
