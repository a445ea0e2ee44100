# Student: one run of the grid; every pipeline goes through the same trainer.
#
# Inputs:  manifests of the artifacts it reads
# Outputs: results/students/<run>/, a loadable model folder
# Paid by: the run


rule train_student:
    input:
        run_inputs,
    output:
        model=directory("<results>/students/{run}/model"),
        training="<results>/students/{run}/training.json",
        energy="<results>/students/{run}/energy.json",
    log:
        "<logs>/train_student/{run}.log",
    conda:
        "../environment.yml"
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=run_recipe,
    message:
        "train student {wildcards.run}"
    script:
        "../workflow/scripts/train_student.py"
