# Student: one run of the grid; every pipeline goes through the same trainer.
#
# Inputs:  manifests of the artifacts it reads
# Outputs: results/students/<run>/, a loadable model folder
# Paid by: the run


def run_recipe(wildcards) -> dict:
    """The recipe of a student run."""
    return STUDY.runs[wildcards.run].recipe


rule train_student:
    input:
        lambda wildcards: [
            manifest(p) for p in STUDY.runs[wildcards.run].inputs.values()
        ],
        machine=ancient(MACHINE),
    output:
        model=directory(RESULTS + "/students/{run}/model"),
        training=RESULTS + "/students/{run}/training.json",
        energy=RESULTS + "/students/{run}/energy.json",
    log:
        "logs/train_student/{run}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=run_recipe,
    message:
        "train student {wildcards.run}"
    script:
        "../workflow/scripts/train_student.py"
