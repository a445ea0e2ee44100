"""Fetch an artifact from the remote that offered it when the workflow started."""

import unpack
from angelshare.jobs import artifact_job

with artifact_job(**unpack.artifact(snakemake)) as (context, plan):
    # Imported inside the window: loading costs energy too.
    from angelshare.reuse import fetch
    from angelshare.store.offers import kept_offers

    fetch(context.store, plan, kept_offers(context.config.results)[plan.key], context.report.say)
