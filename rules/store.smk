# Store: sealing what the parts' jobs made, and fetching what others made.
#
# Inputs:  the receipts of an artifact's parts; nothing where a remote offers the artifact
# Outputs: its manifest, and the sidecar of sealing or fetching it
# Paid by: the artifact


# A second's work on files of a few kB: the submitting host does it, so that a hit waits in no queue.
localrules:
    seal,


rule seal:
    input:
        artifact_receipts,
    output:
        manifest=update("<store>/{kind}/{key}/manifest.json"),
        energy=update("<store>/{kind}/{key}/energy.json"),
    log:
        "<logs>/seal/{kind}-{key}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("seal").threads
    resources:
        **asks("seal"),
    params:
        recipe=artifact_recipe,
    message:
        "seal {wildcards.kind} {wildcards.key}"
    script:
        "../workflow/scripts/seal.py"


# The remotes were asked when the workflow was parsed: only what they offer matches.
rule fetch:
    output:
        manifest=update("<store>/{kind}/{key}/manifest.json"),
        energy=update("<store>/{kind}/{key}/energy.json"),
    log:
        "<logs>/fetch/{kind}-{key}.log",
    wildcard_constraints:
        key="|".join(OFFERS) or NEVER,
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("fetch").threads
    resources:
        **asks("fetch"),
    params:
        recipe=artifact_recipe,
    message:
        "fetch {wildcards.kind} {wildcards.key}"
    script:
        "../workflow/scripts/fetch.py"


ruleorder: fetch > seal
