# Teacher: everything that only a teacher can make, each once, for every team that shares the store.
#
# Inputs:  manifests of datasets, tokenizers, teachers and corpora
# Outputs: receipts of parts; the bytes are objects that the DAG never sees
# Paid by: the artifact; accounting shares the bill over its consumers


# The embedded teacher, trained here so that no download is needed.
rule demo_teacher:
    input:
        artifact_inputs,
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/model/{key}/parts/{part}.json"),
        energy=update(STORE + "/model/{key}/parts/{part}.energy.json"),
    log:
        "logs/demo_teacher/{key}-{part}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "train teacher {params.label}"
    script:
        "../workflow/scripts/demo_teacher.py"


# The teacher's distribution over the target positions, cached without a temperature.
rule capture_logits:
    input:
        artifact_inputs,
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/logits/{key}/parts/{part}.json"),
        energy=update(STORE + "/logits/{key}/parts/{part}.energy.json"),
    log:
        "logs/capture_logits/{key}-{part}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "cache logits of {params.label}, part {wildcards.part}"
    script:
        "../workflow/scripts/capture_logits.py"


# The teacher's answers to the prompts of a dataset.
rule generate_corpus:
    input:
        artifact_inputs,
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/corpus/{key}/parts/{part}.json"),
        energy=update(STORE + "/corpus/{key}/parts/{part}.energy.json"),
    log:
        "logs/generate_corpus/{key}-{part}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "generate corpus: {params.label}, part {wildcards.part}"
    script:
        "../workflow/scripts/generate_corpus.py"


# The teacher's own scores: what the students' quality is relative to.
rule evaluate_teacher:
    input:
        artifact_inputs,
        machine=ancient(MACHINE),
    output:
        receipt=update(STORE + "/scores/{key}/parts/{part}.json"),
        energy=update(STORE + "/scores/{key}/parts/{part}.energy.json"),
    log:
        "logs/evaluate_teacher/{key}-{part}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=artifact_recipe,
        label=artifact_label,
    message:
        "evaluate teacher {params.label}"
    script:
        "../workflow/scripts/evaluate_teacher.py"
