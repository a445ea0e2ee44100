# Evaluation: the students' scores on held-out data.
#
# Inputs:  a trained student (of a quantised point: that of the run that was trained), the dataset's
#          test split
# Outputs: results/scores/<run>.json
# Paid by: the run


rule evaluate_student:
    input:
        evaluation_inputs,
        training=training_record,
    output:
        scores="<results>/scores/{run}.json",
        energy="<results>/scores/{run}.energy.json",
    log:
        "<logs>/evaluate_student/{run}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("evaluate_student").threads
    resources:
        **asks("evaluate_student"),
    params:
        recipe=evaluation_recipe,
    message:
        "evaluate student {wildcards.run}"
    script:
        "../workflow/scripts/evaluate_student.py"
