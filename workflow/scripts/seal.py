"""Seal an artifact: its manifest over the receipts of all parts."""

import unpack
from angelshare.jobs import artifact_job

with artifact_job(**unpack.artifact(snakemake)) as (context, plan):
    context.store.artifact(plan.kind, plan.key).seal(plan.recipe, plan.parts)
