# Evaluation: the students' scores on held-out data.
#
# Inputs:  a trained student, the dataset's test split
# Outputs: results/scores/<run>.json
# Paid by: the run


def evaluation_recipe(wildcards) -> dict:
    """What decides a score besides the student: the evaluation settings and the dataset."""
    dataset = STUDY.runs[wildcards.run].inputs["dataset"]
    return {"dataset": dataset.key, "evaluation": CONFIG.evaluation.model_dump()}


rule evaluate_student:
    input:
        lambda wildcards: manifest(STUDY.runs[wildcards.run].inputs["dataset"]),
        model=RESULTS + "/students/{run}/model",
        training=RESULTS + "/students/{run}/training.json",
    output:
        scores=RESULTS + "/scores/{run}.json",
        energy=RESULTS + "/scores/{run}.energy.json",
    log:
        "logs/evaluate_student/{run}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        recipe=evaluation_recipe,
    message:
        "evaluate student {wildcards.run}"
    script:
        "../workflow/scripts/evaluate_student.py"
