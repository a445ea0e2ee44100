# Accounting: what everything cost and who pays for it.
#
# Inputs:  sidecars of every attempt (read from their undeclared folders), scores, consumer records
# Outputs: the tables of results/accounting/
# Paid by: nobody's bill; stated apart

TABLES = [
    "attempts",
    "components",
    "artifacts",
    "shares",
    "runs",
    "stages",
    "summary",
    "break_even",
    "frontier",
    "dominance",
    "predictions",
    "efficiency",
    "sensitivity",
    "traces",
]


# The machine before anything runs: what it is, what it draws when idle, what its meters can do.
rule prerun:
    output:
        machine="<results>/prerun/machine.json",
        energy="<results>/prerun/energy.json",
    log:
        "<logs>/prerun.log",
    # First, and alone: nothing else may run beside an idle measurement.
    priority: 100
    conda:
        "../environment.yml"
    threads: whole_machine()
    resources:
        **asks("prerun"),
    message:
        "look at the machine and its meters"
    script:
        "../workflow/scripts/prerun.py"


rule account:
    input:
        [manifest(plan) for plan in wanted()],
        machine=ancient("<results>/prerun/machine.json"),
        training=expand("<results>/students/{run}/training.json", run=STUDY.trainings),
        scores=expand("<results>/scores/{run}.json", run=STUDY.runs),
        judged=expand(
            "<results>/judgements/{benchmark}/{run}.json",
            benchmark=STUDY.judged,
            run=STUDY.runs,
        ),
    output:
        tables=expand("<results>/accounting/{table}.parquet", table=TABLES),
        energy="<results>/accounting/energy.json",
    log:
        "<logs>/account.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("account").threads
    resources:
        **asks("account"),
    params:
        recipe=accounting_recipe,
    message:
        "roll up energy, share the teacher's bill, find frontiers and break-even points"
    script:
        "../workflow/scripts/account.py"
