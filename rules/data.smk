# Data: what students and teacher read.
#
# Inputs:  source files or the hub, by pinned revision; nothing for generated problems
# Outputs: datasets and trained tokenizers, as shared artifacts
# Paid by: the artifact, and through it every run that reads it


rule prepare_dataset:
    input:
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/dataset/{key}/parts/{part}.json"),
        energy=update(STORE + "/dataset/{key}/parts/{part}.energy.json"),
    log:
        "logs/prepare_dataset/{key}-{part}.log",
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "prepare dataset {params.label}"
    script:
        "../workflow/scripts/prepare_dataset.py"


rule train_tokenizer:
    input:
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/tokenizer/{key}/parts/{part}.json"),
        energy=update(STORE + "/tokenizer/{key}/parts/{part}.energy.json"),
    log:
        "logs/train_tokenizer/{key}-{part}.log",
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "train tokenizer {params.label}"
    script:
        "../workflow/scripts/train_tokenizer.py"
