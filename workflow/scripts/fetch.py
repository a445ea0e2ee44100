"""Fetch an artifact from the remote that offered it when the workflow started."""

from pathlib import Path

import unpack
from angelshare.jobs import job, planned_artifact
from angelshare.plans import WORK

wildcards = {"kind": snakemake.wildcards.kind, "key": snakemake.wildcards.key}
work = WORK[wildcards["kind"]]
with job(
    stage=work.stage,
    role=work.role,
    attempts=Path(snakemake.output.manifest).parent / "attempts",
    wildcards=wildcards,
    **unpack.common(snakemake),
) as context:
    # Imported inside the window: loading costs energy too.
    from angelshare.reuse import fetch
    from angelshare.store.offers import kept_offers

    plan = planned_artifact(context, wildcards["key"])
    fetch(context.store, plan, kept_offers(context.config.results)[plan.key], context.report.say)
    manifest = context.store.artifact(plan.kind, plan.key).manifest()
    context.window.made(Path(snakemake.output.manifest), manifest.content_sha256, manifest.bytes)
