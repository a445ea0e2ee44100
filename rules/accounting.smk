# Accounting: what everything cost and who pays for it.
#
# Inputs:  sidecars of every attempt (read from their undeclared folders), scores, consumer records
# Outputs: the tables of results/accounting/
# Paid by: nobody's bill; stated apart

TABLES = [
    "attempts",
    "artifacts",
    "shares",
    "runs",
    "summary",
    "break_even",
    "frontier",
]


# The machine before anything runs: what it is, what it draws when idle, what its meters can do.
rule prerun:
    output:
        machine=MACHINE,
        energy=f"{RESULTS}/prerun/energy.json",
    log:
        "logs/prerun.log",
    # Nothing else may run beside an idle measurement.
    threads: workflow.cores or 1
    message:
        "look at the machine and its meters"
    script:
        "../workflow/scripts/prerun.py"


def accounting_recipe(wildcards) -> dict:
    """What the tables depend on besides their inputs: the analysis' settings, and the consumers
    that other teams added to the shared artifacts since."""
    return {
        "accounting": CONFIG.accounting.model_dump(),
        "foreign_consumers": foreign_consumers(
            STORE,
            CONFIG.store.team_id(),
            [(plan.kind, plan.key) for plan in STUDY.artifacts.values()],
        ),
    }


rule account:
    input:
        [manifest(plan) for plan in STUDY.artifacts.values()],
        machine=ancient(MACHINE),
        training=expand(RESULTS + "/students/{run}/training.json", run=STUDY.runs),
        scores=expand(RESULTS + "/scores/{run}.json", run=STUDY.runs),
        energy=expand(RESULTS + "/scores/{run}.energy.json", run=STUDY.runs),
    output:
        tables=expand(RESULTS + "/accounting/{table}.parquet", table=TABLES),
        energy=f"{RESULTS}/accounting/energy.json",
    log:
        "logs/account.log",
    params:
        recipe=accounting_recipe,
    message:
        "roll up energy, share the teacher's bill, find frontiers and break-even points"
    script:
        "../workflow/scripts/account.py"
