# Teacher: everything that only a teacher can make, each once, for every team that shares the store.
#
# Inputs:  manifests of datasets, tokenizers, teachers and corpora
# Outputs: receipts of parts; the bytes are objects that the DAG never sees
# Paid by: the artifact; accounting shares the bill over its consumers


# The embedded teacher, trained here so that no download is needed.
rule demo_teacher:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/model/{key}/parts/{part}.json"),
        energy=update("<store>/model/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/demo_teacher/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("demo_teacher").threads
    resources:
        **asks("demo_teacher"),
    params:
        recipe=artifact_recipe,
    message:
        "train teacher {wildcards.key}"
    script:
        "../workflow/scripts/demo_teacher.py"


# A student that teaches others: an artifact, because nothing in the store may depend on results/.
rule train_assistant:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/model/{key}/parts/{part}.json"),
        energy=update("<store>/model/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/train_assistant/{key}-{part}.log",
    wildcard_constraints:
        key="|".join(STUDY.assistants) or NEVER,
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("train_student").threads
    resources:
        **asks_to_train(),
    params:
        recipe=artifact_recipe,
    message:
        "train assistant {wildcards.key}"
    script:
        "../workflow/scripts/train_assistant.py"


ruleorder: train_assistant > demo_teacher


# The teacher's distribution over the target positions, cached without a temperature.
rule capture_logits:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/logits/{key}/parts/{part}.json"),
        energy=update("<store>/logits/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/capture_logits/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("capture_logits").threads
    resources:
        **asks("capture_logits"),
    params:
        recipe=artifact_recipe,
    message:
        "cache logits of {wildcards.key}, part {wildcards.part}"
    script:
        "../workflow/scripts/capture_logits.py"


# What the teacher holds at some points of its blocks, over the same positions.
rule capture_states:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/states/{key}/parts/{part}.json"),
        energy=update("<store>/states/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/capture_states/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("capture_states").threads
    resources:
        **asks("capture_states"),
    params:
        recipe=artifact_recipe,
    message:
        "cache hidden states of {wildcards.key}, part {wildcards.part}"
    script:
        "../workflow/scripts/capture_states.py"


# The teacher's answers to the prompts of a dataset.
rule generate_corpus:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/corpus/{key}/parts/{part}.json"),
        energy=update("<store>/corpus/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/generate_corpus/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("generate_corpus").threads
    resources:
        **asks("generate_corpus"),
    params:
        recipe=artifact_recipe,
    message:
        "generate corpus: {wildcards.key}, part {wildcards.part}"
    script:
        "../workflow/scripts/generate_corpus.py"


# The teacher's own scores: what the students' quality is relative to.
rule evaluate_teacher:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/scores/{key}/parts/{part}.json"),
        energy=update("<store>/scores/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/evaluate_teacher/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("evaluate_teacher").threads
    resources:
        **asks("evaluate_teacher"),
    params:
        recipe=artifact_recipe,
    message:
        "evaluate teacher {wildcards.key}"
    script:
        "../workflow/scripts/evaluate_teacher.py"
