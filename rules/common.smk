# What every stage shares: the checked configuration, the study it asks for, and the paths.
#
# Parsing is a pure computation over the configuration: no artifact is opened, nothing heavy is
# imported (each cluster job parses these files again).
from snakemake.exceptions import WorkflowError

from angelshare.store.consumers import foreign_consumers
from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.grid import ArtifactPlan, plan_study

try:
    CONFIG = load_config(config)
    STUDY = plan_study(CONFIG)
except AngelshareError as error:
    raise WorkflowError(str(error))

STORE = CONFIG.store.root
RESULTS = CONFIG.results
THREADS = CONFIG.hardware.threads
GPUS = CONFIG.hardware.gpus
MACHINE = f"{RESULTS}/prerun/machine.json"


wildcard_constraints:
    kind="[a-z]+",
    key="[0-9a-f]{32}",
    part="[0-9]{5}",
    run="[A-Za-z0-9_.-]+",


# Every edge that reads from the store is ancient: a path there holds the key of a recipe, so a
# younger modification time (a copy, an rsync, a clone) says nothing about its content, which is
# checked by digest when it is read.
def manifest(plan: ArtifactPlan):
    """The manifest of an artifact, as an input that modification times never invalidate."""
    return ancient(f"{STORE}/{plan.kind}/{plan.key}/manifest.json")


def artifact_recipe(wildcards) -> dict:
    """The recipe of the artifact that a rule makes."""
    return STUDY.artifacts[wildcards.key].recipe


def artifact_label(wildcards) -> str:
    """What the artifact is, for people."""
    return STUDY.artifacts[wildcards.key].label


def artifact_inputs(wildcards) -> list:
    """The manifests an artifact is made from."""
    return [manifest(plan) for plan in STUDY.artifacts[wildcards.key].inputs.values()]


def artifact_receipts(wildcards) -> list:
    """The receipts of all parts of an artifact."""
    plan = STUDY.artifacts[wildcards.key]
    folder = f"{STORE}/{plan.kind}/{plan.key}/parts"
    return [ancient(f"{folder}/{part:05d}.json") for part in range(plan.parts)]


# Inputs:  the receipts of an artifact's parts
# Outputs: its manifest, and the sidecar of sealing it
# Paid by: the artifact
rule seal:
    input:
        artifact_receipts,
    output:
        manifest=update(STORE + "/{kind}/{key}/manifest.json"),
        energy=update(STORE + "/{kind}/{key}/energy.json"),
    log:
        "logs/seal/{kind}-{key}.log",
    params:
        recipe=artifact_recipe,
    message:
        "seal {wildcards.kind} {wildcards.key}"
    script:
        "../workflow/scripts/seal.py"
