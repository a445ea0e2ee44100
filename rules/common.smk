# What every stage shares: the checked configuration, the study it asks for, and the paths.
#
# Parsing opens no artifact and imports nothing heavy, for each cluster job parses these files again.
# Only the main process asks the remotes, where there are any.
import atexit
import gc
import inspect
import sys
from functools import cache
from os import environ
from os.path import exists
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.enums import Quietness

# A workflow uses the library of its own checkout, installed or not; so do its scripts.
sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "lib"))

from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.overview import overview
from angelshare.plans import ArtifactPlan
from angelshare.recipes import canonical, make_recipe
from angelshare.reuse import offers_for, sources
from angelshare.revisions import unresolved
from angelshare.store.offers import keep_offers, kept_offers

try:
    CONFIG = load_config(config)
    STUDY = plan_study(CONFIG)
except AngelshareError as error:
    raise WorkflowError(str(error))

# Within a job's step; Slurm may tell this process alone that the job is about to end.
if "SLURM_STEP_ID" in environ and not workflow.is_main_process:
    from angelshare.termination import pass_on_termination

    pass_on_termination()

# The study stays to the end: the collector need not look at its recipes again and again.
gc.freeze()

ARTIFACTS = CONFIG.store.open()
LISTED_RUNS = 6


def whole_machine() -> int:
    """The threads of a job that is to be alone on its machine; on a cluster it has its own share."""
    try:
        return 1 if workflow.remote_exec else workflow.cores
    except WorkflowError:
        return 1  # the submitting host of a cluster has no total


NEVER = "(?!)"  # a pattern that nothing matches

# The remotes are asked once, by the main process; its jobs make the same choice from what it kept.
OFFERS = {}
if CONFIG.store.remotes and workflow.is_main_process:
    answer = offers_for(STUDY, ARTIFACTS, CONFIG.store.remotes)
    OFFERS = answer.offers
    for warning in answer.warnings:
        logger.warning(warning)
    for key, url in OFFERS.items():
        plan = STUDY.artifacts[key]
        logger.info(
            f"{plan.kind} {plan.label}: {answer.sizes[key]:,} bytes to fetch from {url}"
        )
elif CONFIG.store.remotes:
    OFFERS = kept_offers(CONFIG.results)
SOURCES = sources(STUDY, ARTIFACTS, OFFERS)


def wanted() -> list:
    """The artifacts that the study needs or has. One that is gone, or that only a fetched one was
    made from, is needed again only where something is to be made from it."""
    return [
        plan for key, plan in STUDY.artifacts.items() if SOURCES[key] != "not needed"
    ]


# A dry run says what the study amounts to. Of one that would not fit a screen, Snakemake then counts
# the jobs of each rule and lists none (`--quiet host` lists all).
if {"-n", "--dry-run", "--dryrun"}.intersection(sys.argv):
    print(overview(STUDY, SOURCES), file=sys.stderr)
    if unresolved(CONFIG):
        print(
            f"To be resolved before a run (angelshare resolve): {', '.join(unresolved(CONFIG))}",
            file=sys.stderr,
        )
    if len(STUDY.runs) > LISTED_RUNS and not {"-q", "--quiet"}.intersection(sys.argv):
        workflow.output_settings.quiet = {Quietness.RULES, Quietness.PROGRESS}


pathvars:
    store=CONFIG.store.root,
    results=CONFIG.results,


wildcard_constraints:
    kind="[a-z]+",
    key="[0-9a-f]{32}",
    part="[0-9]{5}",
    run="[A-Za-z0-9_.-]+",
    dataset="[A-Za-z0-9_-]+",
    benchmark="[a-z0-9_]+",


# Two things keep a store's content from being made twice. Every edge that reads from the store is
# ancient: a path there holds the key of a recipe, so a younger modification time (a copy, an rsync,
# a clone) says nothing about its content, which is checked by digest when it is read. And work that
# is done has no edges any more: a missing manifest upstream is sealed again, alone.
@cache
def located(kind: str, key: str, parts: int) -> tuple:
    """The path of an artifact's manifest, and of the receipts where it is not a layer's."""
    home = ARTIFACTS.artifact(kind, key).store
    if home is not ARTIFACTS:
        return ancient(f"{home.root}/{kind}/{key}/manifest.json"), []
    folder = f"<store>/{kind}/{key}"
    numbered = [ancient(f"{folder}/parts/{part:05d}.json") for part in range(parts)]
    return ancient(f"{folder}/manifest.json"), numbered


def manifest(plan: ArtifactPlan):
    """The manifest of an artifact, as an input that modification times never invalidate."""
    return located(plan.kind, plan.key, plan.parts)[0]


def receipts(plan: ArtifactPlan) -> list:
    """The receipts of an artifact's parts, likewise; a layer or remote answers for its own."""
    if SOURCES[plan.key] == "remote":
        return []
    return located(plan.kind, plan.key, plan.parts)[1]


def whole(plans) -> list:
    """What says that these artifacts are there, all parts of them."""
    return [path for plan in plans for path in (manifest(plan), *receipts(plan))]


@cache
def lost(kind: str, key: str, parts: int) -> list:
    """The receipts that are missing of an artifact that was sealed once: parts to be made again."""
    artifact = ARTIFACTS.artifact(kind, key)
    if not artifact.manifest_path.exists():
        return []
    paths = located(kind, key, parts)[1]
    return [p for n, p in enumerate(paths) if not artifact.receipt_path(n).exists()]


def readable(plans) -> list:
    """What a job that reads these artifacts waits for. A manifest stands for the receipts it is
    sealed from; students are many, and every input of each is an edge for Snakemake to follow.
    """
    edges = []
    for plan in plans:
        edges.append(manifest(plan))
        if SOURCES[plan.key] != "remote":
            edges += lost(plan.kind, plan.key, plan.parts)
    return edges


def signed(function):
    """Snakemake asks for a function's signature several times per job; here it is found once."""
    function.__signature__ = inspect.signature(function)
    return function


def asks(rule: str) -> dict:
    """The memory (MB), run time (minutes) and GPUs that a job of the named rule asks for.

    A retry gets the memory and run time once more, because what ended the attempt before it may
    have been their limit. GPUs are those of one node, all for one process.
    """
    first = CONFIG.resources_of(rule)
    gpus = {"gpu": first.gpus} if CONFIG.runs_model(rule) or first.gpus else {}
    one_process = {"nodes": 1, "tasks_per_gpu": 0} if first.gpus else {}
    return {
        "mem_mb": signed(lambda wildcards, attempt: first.memory_mb * attempt),
        "runtime": signed(lambda wildcards, attempt: first.runtime_min * attempt),
        **gpus,
        **one_process,
    }


def trained(wildcards):
    """The run that a job trains, or the assistant as the run that it is."""
    if "run" in wildcards.keys():
        return STUDY.runs[wildcards.run]
    return STUDY.assistants[wildcards.key]


def asks_to_train() -> dict:
    """What the training of a student asks for; its GPUs and nodes are those of the student.

    GPUs of several nodes are asked for by node (gres), so that each has as many. One task per node:
    the job's own step runs on the first, and starts the others' processes itself.
    """
    asked = asks("train_student")
    runs = [*STUDY.runs.values(), *STUDY.assistants.values()]
    students = {run.student for run in runs}
    nodes = {name: CONFIG.students[name].nodes for name in students}
    gpus = {name: CONFIG.training_gpus(name) for name in students}

    def of(chosen: dict):
        values = set(chosen.values())
        if len(values) == 1:
            return values.pop()
        return signed(lambda wildcards: chosen[trained(wildcards).student])

    if max(gpus.values(), default=0):
        asked |= {"nodes": of(nodes), "tasks_per_gpu": 0}
    if max(nodes.values(), default=1) > 1:
        spread = {name for name in students if nodes[name] > 1 and gpus[name]}
        by_node = {n: f"gpu:{gpus[n]}" if n in spread else "" for n in students}
        asked |= {"nodes": of(nodes), "tasks": of(nodes), "gres": of(by_node)}
        gpus |= dict.fromkeys(spread, 0)
    return {**asked, "gpu": of(gpus)}


@signed
def artifact_recipe(wildcards) -> dict:
    """The recipe of the artifact that a rule makes."""
    return STUDY.artifacts[wildcards.key].recipe


# A job whose product is there has no inputs: work that is done has no edges.
@signed
def artifact_inputs(wildcards) -> list:
    """The manifests that a part of an artifact is made from."""
    plan = STUDY.artifacts[wildcards.key]
    receipt = ARTIFACTS.artifact(plan.kind, plan.key).receipt_path(int(wildcards.part))
    return [] if receipt.exists() else readable(plan.inputs.values())


@signed
def artifact_receipts(wildcards) -> list:
    """The receipts that an artifact is sealed from."""
    plan = STUDY.artifacts[wildcards.key]
    sealed = ARTIFACTS.artifact(plan.kind, plan.key).manifest_path
    return [] if sealed.exists() else receipts(plan)


@signed
def run_inputs(wildcards) -> list:
    """The manifests that a student is trained from."""
    run = STUDY.runs[wildcards.run]
    trained = f"{CONFIG.results}/students/{run.name}/training.json"
    return [] if exists(trained) else readable(run.inputs.values())


@signed
def training_record(wildcards) -> str:
    """The record of the training of the model that a run scores."""
    return f"{CONFIG.results}/students/{STUDY.runs[wildcards.run].trained_name}/training.json"


@signed
def evaluation_inputs(wildcards) -> list:
    """The manifest of the data that a student is scored on."""
    run = STUDY.runs[wildcards.run]
    scores = f"{CONFIG.results}/scores/{run.name}.json"
    return [] if exists(scores) else readable([run.inputs["dataset"]])


@signed
def dataset_manifest(wildcards) -> list:
    """The manifest of a dataset that the overlap report reads, by its name."""
    return readable([STUDY.datasets[wildcards.dataset]])


@signed
def overlap_recipe(wildcards) -> dict:
    """What decides an overlap report: the dataset, the benchmarks, what counts as overlap."""
    judged = {name: one.answers["files"] for name, one in STUDY.judged.items()}
    return canonical(
        {
            "dataset": STUDY.datasets[wildcards.dataset].key,
            "benchmarks": {n: b.identity() for n, b in CONFIG.benchmarks.items()},
            "overlap": CONFIG.overlap.identity(),
            **({"judged": judged} if judged else {}),
        }
    )


@signed
def run_recipe(wildcards) -> dict:
    """The recipe of a student run."""
    return STUDY.runs[wildcards.run].recipe


@signed
def evaluation_recipe(wildcards) -> dict:
    """What decides a score besides the student: the evaluation settings and the dataset."""
    run = STUDY.runs[wildcards.run]
    precision = {"quantised": run.quantised} if run.quantised else {}
    return make_recipe(
        "evaluation",
        dataset=run.inputs["dataset"].key,
        evaluation=STUDY.evaluation,
        **precision,
    )


@signed
def answers_recipe(wildcards) -> dict:
    """What decides a student's answers to a judged benchmark, besides the student."""
    return make_recipe("answers", **STUDY.judged[wildcards.benchmark].answers)


@signed
def judgements_recipe(wildcards) -> dict:
    """What decides the verdicts, besides the answers."""
    return make_recipe("judgements", **STUDY.judged[wildcards.benchmark].judgements)


@signed
def accounting_recipe(wildcards) -> dict:
    """What the tables depend on besides their inputs: which runs, the analysis' settings, and the
    consumers that other teams added to the shared artifacts since."""
    artifacts = [(plan.kind, plan.key) for plan in STUDY.artifacts.values()]
    team = CONFIG.store.team_id()
    return canonical(
        {
            "runs": sorted(STUDY.runs),
            "accounting": CONFIG.accounting.model_dump(),
            "counts": CONFIG.evaluation.counts,
            "cited": {
                name: {task: one.model_dump() for task, one in cited.items()}
                for name in CONFIG.teachers
                if (cited := CONFIG.cited_scores(name))
            },
            "foreign_consumers": ARTIFACTS.foreign_consumers(team, artifacts),
        }
    )


def begin() -> None:
    """What a real run does before its first job: say what it will cost, and refuse or go on."""
    from angelshare.planning import workflow as planning
    from angelshare.preflight import require_ready
    from angelshare.store.gc import register

    try:
        require_ready(CONFIG, {rule for rule, _ in planned_jobs()})
        # Whoever collects garbage in the shared store must know what this configuration reaches.
        reached = [(plan.kind, plan.key) for plan in STUDY.artifacts.values()]
        configured = [str(path) for path in workflow.configfiles]
        register(ARTIFACTS, CONFIG.store.team_id(), Path.cwd(), reached, configured)
        if CONFIG.store.remotes:
            keep_offers(CONFIG.results, OFFERS)
        # Said, kept for the comparison with what is then measured, refused beyond the budget.
        say(planning.start(CONFIG, STUDY, ARTIFACTS, OFFERS, planned_jobs()))
    except AngelshareError as error:
        raise WorkflowError(str(error))


# The watch of this run; empty where none was started, as in a dry run.
WATCHES = []


def watch_study() -> None:
    """Lines on the whole study beside Snakemake's own, and a page, for as long as this runs."""
    from angelshare.progress.study import Reader
    from angelshare.progress.watch import Watch

    page = Path(CONFIG.results, "status.html")
    reader = Reader(CONFIG, STUDY, ARTIFACTS)
    watch = Watch(
        reader,
        Path(),
        page,
        not workflow.local_exec,
        rules={rule for rule, _ in planned_jobs()},
        # From a thread of its own this is safe; a signal to Snakemake could come amid its locks.
        stop=workflow.scheduler.exit_gracefully,
    )
    WATCHES.append(watch)
    watch.start()


def look_at_last() -> None:
    """What happened since the watch last looked."""
    for watch in WATCHES:
        watch.look(last=True)


def planned_jobs() -> list:
    """Rule and wildcards of the jobs that this run is about to do."""
    jobs = workflow.dag.needrun_jobs(exclude_finished=False)
    return [(job.rule.name, dict(job.wildcards)) for job in jobs]


def say(lines: list) -> None:
    """Print lines where Snakemake's own messages go."""
    print(*lines, sep="\n", file=sys.stderr)


def announce() -> None:
    """What a dry run's jobs would cost, after Snakemake has listed them."""
    if workflow.dryrun and workflow._dag is not None:
        from angelshare.planning import workflow as planning

        say(planning.announce(CONFIG, STUDY, ARTIFACTS, OFFERS, planned_jobs()))


# Snakemake has hooks for real runs alone.
if workflow.is_main_process:
    atexit.register(announce)
