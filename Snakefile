# Angelshare: distil language models with every joule on the bill and no teacher artifact made twice.
#
#   snakemake --profile local all_frontiers      one machine, with or without a GPU
#   snakemake --profile slurm all_frontiers      a Slurm cluster
#
# The configuration is config/config.yaml (the embedded default); add --configfile for another grid.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/store.smk"
include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/evaluation.smk"
include: "rules/accounting.smk"
include: "rules/frontiers.smk"


onstart:
    # Whoever collects garbage in the shared store must know what this configuration reaches.
    register(
        ARTIFACTS,
        CONFIG.store.team_id(),
        Path.cwd(),
        [(plan.kind, plan.key) for plan in STUDY.artifacts.values()],
        [str(path) for path in workflow.configfiles],
    )
    if CONFIG.store.remotes:
        keep_offers(CONFIG.results, OFFERS)
    # Said, kept for the comparison with what is then measured, and refused beyond the budget.
    try:
        say(planning.start(CONFIG, STUDY, ARTIFACTS, OFFERS, planned_jobs()))
    except AngelshareError as error:
        raise WorkflowError(str(error))
    watch_study()


# Everything: the report, its figures, and every shared artifact of the study sealed in the store.
rule all_frontiers:
    default_target: True
    input:
        "<results>/report.html",
        whole(wanted()),


# The shared teacher artifacts alone, for a team that only wants to fill the store.
rule all_artifacts:
    input:
        whole(wanted()),
