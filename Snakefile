# Angelshare: distil language models with every joule on the bill and no teacher artifact made twice.
#
#   snakemake --profile local all_frontiers      one machine, with or without a GPU
#   snakemake --profile slurm all_frontiers      a Slurm cluster
#
# The configuration is config/config.yaml (the embedded default), or instead of it whatever
# --configfile names, such as config/grids/olmo2-paper.yaml.
from snakemake.utils import min_version

min_version("9.0")


# A grid stands alone: what it leaves out has the documented default, not the embedded study's value.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/store.smk"
include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/evaluation.smk"
include: "rules/judges.smk"
include: "rules/accounting.smk"
include: "rules/frontiers.smk"


onstart:
    begin()
    watch_study()


onsuccess:
    look_at_last()


onerror:
    look_at_last()


# Everything: the report, its figures, and every shared artifact of the study sealed in the store.
rule all_frontiers:
    default_target: True
    input:
        "<results>/report.html",
        OVERLAP_REPORTS,
        whole(wanted()),


# The shared teacher artifacts alone, for a team that only wants to fill the store.
rule all_artifacts:
    input:
        whole(wanted()),
