"""Seal an artifact: its manifest over the receipts of all parts."""

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
    plan = planned_artifact(context, wildcards["key"])
    manifest = context.store.artifact(plan.kind, plan.key).seal(plan.recipe, plan.parts)
    context.window.made(Path(snakemake.output.manifest), manifest.content_sha256, manifest.bytes)
