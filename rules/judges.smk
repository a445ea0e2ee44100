# Judges: benchmarks whose answers a model rates.
#
# Inputs:  a trained student, or a teacher; the answers
# Outputs: results/answers/<benchmark>/<run>.json with the answers themselves undeclared beside it, and
#          results/judgements/<benchmark>/<run>.json; a teacher's answers and judgements in the store
# Paid by: the run; the artifact, whose bill accounting shares


rule answer_student:
    input:
        training="<results>/students/{run}/training.json",
    output:
        answers="<results>/answers/{benchmark}/{run}.json",
        energy="<results>/answers/{benchmark}/{run}.energy.json",
    log:
        "<logs>/answer_student/{benchmark}-{run}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("answer_student").threads
    resources:
        **asks("answer_student"),
    params:
        recipe=answers_recipe,
    message:
        "student {wildcards.run} answers {wildcards.benchmark}"
    script:
        "../workflow/scripts/answer_student.py"


rule judge_student:
    input:
        answers="<results>/answers/{benchmark}/{run}.json",
    output:
        scores="<results>/judgements/{benchmark}/{run}.json",
        energy="<results>/judgements/{benchmark}/{run}.energy.json",
    log:
        "<logs>/judge_student/{benchmark}-{run}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("judge_student").threads
    resources:
        **asks("judge_student"),
    params:
        recipe=judgements_recipe,
    message:
        "judge {wildcards.run} on {wildcards.benchmark}"
    script:
        "../workflow/scripts/judge_student.py"


rule answer_teacher:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/answers/{key}/parts/{part}.json"),
        energy=update("<store>/answers/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/answer_teacher/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("answer_teacher").threads
    resources:
        **asks("answer_teacher"),
    params:
        recipe=artifact_recipe,
    message:
        "teacher answers {wildcards.key}"
    script:
        "../workflow/scripts/answer_teacher.py"


rule judge_teacher:
    input:
        artifact_inputs,
    output:
        receipt=update("<store>/judgements/{key}/parts/{part}.json"),
        energy=update("<store>/judgements/{key}/parts/{part}.energy.json"),
    log:
        "<logs>/judge_teacher/{key}-{part}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("judge_teacher").threads
    resources:
        **asks("judge_teacher"),
    params:
        recipe=artifact_recipe,
    message:
        "judge teacher {wildcards.key}"
    script:
        "../workflow/scripts/judge_teacher.py"
