# Store: sealing what the parts' jobs made.
#
# Inputs:  the receipts of an artifact's parts
# Outputs: its manifest, and the sidecar of sealing it
# Paid by: the artifact
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
    params:
        recipe=artifact_recipe,
    message:
        "seal {wildcards.kind} {wildcards.key}"
    script:
        "../workflow/scripts/seal.py"
