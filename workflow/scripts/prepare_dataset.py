"""Prepare a dataset: one sequence table, split and subsampled by its seed."""

import unpack
from angelshare.jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Load the source that the configuration names and commit its rows."""
    from angelshare.data.sources import load_source, stated_licence
    from angelshare.data.tables import write_table

    source = job.context.config.datasets[job.plan.name]
    table = load_source(source)
    job.context.making.licence(job.plan, stated_licence(source))
    path = job.context.scratch / "data.parquet"
    write_table(table, path)
    job.context.window.count(samples=table.num_rows)
    job.commit({path.name: path}, rows=table.num_rows)


with part_job("dataset", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
