# Data: what students and teacher read.
#
# Inputs:  source files or the hub, by pinned revision; nothing for generated problems
# Outputs: datasets and trained tokenizers, as shared artifacts
# Paid by: the artifact, and through it every run that reads it; the overlap report by nobody

OVERLAP_REPORTS = (
    expand(
        "<results>/overlap/{dataset}.json",
        dataset=sorted(STUDY.datasets),
    )
    if CONFIG.benchmarks or STUDY.judged
    else []
)


rule prepare_dataset:
    output:
        receipt=update("<store>/dataset/{key}/parts/{part}.json"),
        energy=update("<store>/dataset/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/prepare_dataset/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("prepare_dataset").threads
    resources:
        **asks("prepare_dataset"),
    params:
        recipe=artifact_recipe,
    message:
        "prepare dataset {wildcards.key}"
    script:
        "../workflow/scripts/prepare_dataset.py"


rule train_tokenizer:
    output:
        receipt=update("<store>/tokenizer/{key}/parts/{part}.json"),
        energy=update("<store>/tokenizer/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/train_tokenizer/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("train_tokenizer").threads
    resources:
        **asks("train_tokenizer"),
    params:
        recipe=artifact_recipe,
    message:
        "train tokenizer {wildcards.key}"
    script:
        "../workflow/scripts/train_tokenizer.py"


# What a dataset shares with the evaluation sets, and with itself. It informs and changes nothing.
rule report_overlap:
    input:
        dataset_manifest,
    output:
        report="<results>/overlap/{dataset}.json",
        energy="<results>/overlap/{dataset}.energy.json",
    log:
        "<logs>/report_overlap/{dataset}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("report_overlap").threads
    resources:
        **asks("report_overlap"),
    params:
        recipe=overlap_recipe,
    message:
        "look for the benchmarks in dataset {wildcards.dataset}"
    script:
        "../workflow/scripts/report_overlap.py"
