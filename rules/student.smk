# Student: one run of the grid; every pipeline goes through the same trainer.
#
# Inputs:  manifests of the artifacts it reads
# Outputs: results/students/<run>/, with the record of the training; the loadable folder model/ beside
#          it is undeclared, so that Snakemake never deletes what a job at work has just published
# Paid by: the run


rule train_student:
    input:
        run_inputs,
    output:
        training="<results>/students/{run}/training.json",
        energy="<results>/students/{run}/energy.json",
    log:
        "<logs>/train_student/{run}.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("train_student").threads
    resources:
        **asks_to_train(),
    params:
        recipe=run_recipe,
    message:
        "train student {wildcards.run}"
    script:
        "../workflow/scripts/train_student.py"
