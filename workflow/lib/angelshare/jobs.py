"""What every job of the workflow has around it: the checked configuration, an energy window,
progress lines, and errors that end in one clear message.

Scripts unpack Snakemake's object into plain values and come here; the library never sees it.
"""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, TypeVar

from angelshare.config import Config, load_config
from angelshare.devices import claimed_gpus
from angelshare.energy import Job, window
from angelshare.energy.machine import run_of
from angelshare.energy.measures import Baseline
from angelshare.energy.windows import Terminated
from angelshare.errors import AngelshareError
from angelshare.files import read_json
from angelshare.grid import plan_study
from angelshare.planning.spending import check_budget
from angelshare.plans import ArtifactPlan, RunPlan, Study, work_of
from angelshare.provenance import Making, restricted, restricted_of
from angelshare.recipes import Recipe
from angelshare.reporter import Reporter
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.changes import Contents, refuse_changed
from angelshare.store.checks import Checks
from angelshare.store.consumers import Consumer, consumer_id
from angelshare.store.leases import sole_maker
from angelshare.store.provenance import restriction
from angelshare.student.settings import PretrainedStudent
from angelshare.teacher.settings import PretrainedTeacher
from angelshare.termination import preempted, queue_again

if TYPE_CHECKING:
    from angelshare.data.answers import AnswerReport
    from angelshare.energy import Window
    from angelshare.energy.windows import Role
    from angelshare.student.requests import OnPolicyRequest

Plan = TypeVar("Plan", ArtifactPlan, RunPlan)


@dataclass(slots=True, kw_only=True)
class JobContext:
    """What the body of a job works with."""

    config: Config
    study: Study
    store: ArtifactStore
    window: Window
    report: Reporter
    scratch: Path
    """A private folder that is gone when the job ends."""
    checks: Checks
    """The digests of what is read, being taken beside the reading."""
    making: Making = field(default_factory=Making)
    """What this job uses to make its part."""
    contents: dict[str, str] = field(default_factory=dict)
    """The content digest of each artifact that was read, by ``kind/key``."""

    def rows(self, plan: ArtifactPlan, splits: list[str] | None = None) -> Any:
        """The sequence table (pyarrow) of a dataset or corpus, with the wanted splits only."""
        import pyarrow as pa

        from angelshare.data.tables import in_splits, read_table

        tables = [path for path in self.read(plan) if path.suffix == ".parquet"]
        table = pa.concat_tables(read_table(path) for path in tables)
        return table if splits is None else in_splits(table, splits)

    def open(self, plan: ArtifactPlan) -> Artifact:
        """A sealed artifact, to be read.

        Raises:
            AngelshareError: when it is missing or damaged, or was made from what its inputs no
                longer are.
        """
        artifact = self.store.artifact(plan.kind, plan.key)
        refuse_changed(self.store, artifact)
        self.contents[f"{plan.kind}/{plan.key}"] = artifact.manifest().content_sha256
        return artifact

    def answers(
        self, plan: ArtifactPlan, corpus: Any, recipe: Mapping[str, Any]
    ) -> tuple[Any, AnswerReport]:
        """The rows of ``corpus`` that the recipe's filter keeps, and what the others were.

        ``plan`` is the corpus artifact that the rows are of; `AngelshareError` when none is left.
        """
        from angelshare.data.answers import filter_answers, original_answers
        from angelshare.data.settings import AnswerFilter
        from angelshare.energy.attempts import bill_of, read_attempts

        settings = AnswerFilter.model_validate(recipe.get("answers", {}))
        asked = plan.inputs["sequences"]
        originals = original_answers(self.rows(asked)) if settings.check else {}
        kept, report = filter_answers(corpus, originals, settings)
        attempts = self.store.artifact(plan.kind, plan.key).attempts
        tokens = self.store.artifact(plan.kind, plan.key).manifest().tokens
        if tokens:
            share = report.dropped_tokens / tokens
            report.dropped_j = bill_of(read_attempts(attempts)).energy_j * share
        if report.dropped:
            reasons = ", ".join(f"{why} {count}" for why, count in report.dropped.items())
            self.report.say(
                f"{report.kept} of {report.answers} answers kept; left out: {reasons} "
                f"({report.dropped_tokens:,} tokens, {report.dropped_j or 0:,.1f} J)"
            )
        if not report.kept:
            raise AngelshareError(f"the filter keeps none of {report.answers} answers: see answers")
        return kept, report

    def read(self, plan: ArtifactPlan) -> list[Path]:
        """The objects of an artifact, noted as inputs of this job; being checked while read."""
        artifact = self.open(plan)
        paths = artifact.paths(self.checks)
        for path in paths:
            self.window.read(path, path.name.partition(".")[0], producer=str(artifact))
        return paths

    @contextmanager
    def folder(self, plan: ArtifactPlan) -> Iterator[Path]:
        """A folder with the files of a model or tokenizer artifact under their own names."""
        artifact = self.open(plan)
        with artifact.as_folder(self.checks) as folder:
            self.window.read(
                artifact.manifest_path, artifact.manifest().content_sha256, producer=str(artifact)
            )
            yield folder

    @contextmanager
    def teacher(self, plan: ArtifactPlan) -> Iterator[tuple[str, dict[str, Any]]]:
        """The folder or hub name of the teacher an artifact is made by, and how to load it.

        Its files, tokenizer and device are noted for the receipt.
        """
        from angelshare.teacher.models import load_tokenizer

        self._warn_of(restricted(self.config, plan))
        teacher = self.config.teachers[plan.name]
        with self._loadable(plan.name, plan) as (model, options):
            yield model, options
            self.making.tokenizer(load_tokenizer(model, **options))
        if isinstance(teacher, PretrainedTeacher):
            self.making.model(teacher, self.config.results)
        self.making.device()

    @contextmanager
    def teacher_beside(self, run: RunPlan) -> Iterator[OnPolicyRequest | None]:
        """The teacher that lies in memory while a run is trained; None where there is none."""
        from angelshare.student.requests import OnPolicyRequest

        settings = self.config.pipelines[run.pipeline].on_policy
        if settings is None:
            yield None
            return
        self._warn_of(restricted_of(self.config, run))
        with self._loadable(next(iter(run.teachers)), run) as (model, options):
            yield OnPolicyRequest(settings=settings, model=model, identity=run.key, **options)

    @contextmanager
    def _loadable(self, name: str, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
        """The folder or hub name of the teacher ``name`` of a plan, and how to load it."""
        teacher = self.config.teachers[name]
        if isinstance(teacher, PretrainedTeacher):
            yield (
                teacher.model,
                {
                    "revision": teacher.revision,
                    "trust_remote_code": teacher.trust_remote_code,
                },
            )
        else:
            with self.folder(plan.inputs["teacher"]) as folder:
                yield str(folder), {}

    def _warn_of(self, models: list[str]) -> None:
        if models:
            self.report.say(f"warning: {restriction(models)}")
            self.window.warn("licence", restriction(models))

    @contextmanager
    def tokenizer(self, run: RunPlan) -> Iterator[tuple[str, str | None]]:
        """The folder or hub name of the tokenizer a student reads with, and its revision."""
        student = self.config.students[run.student]
        lender = self.config.teachers.get(student.tokenizer_of or "")
        if isinstance(lender, PretrainedTeacher):
            yield lender.model, lender.revision
        elif isinstance(student.init, PretrainedStudent):
            yield student.init.model, student.init.revision
        else:
            with self.folder(run.inputs["tokenizer"]) as folder:
                yield str(folder), None

    @contextmanager
    def own_result(self, kept: Path, recipe: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
        """The finished result of a job of this team's own; None to make it here, alone.

        Snakemake deletes the outputs of a job before it starts it, also where a job that an earlier
        Snakemake left behind has made them meanwhile. So the result is kept in ``kept``, an
        undeclared file beside them with the ``recipe`` it was made by: whoever comes second waits
        and adopts it. Deleting the file, or its folder, has the result made again.
        """

        def finished() -> dict[str, Any] | None:
            try:
                record = read_json(kept)
            except (OSError, ValueError):
                return None
            return record if isinstance(record, dict) and record.get("recipe") == recipe else None

        lease = kept.with_name(f".{kept.name}.lease")
        with sole_maker(lease, finished, self.report.name, self.report.say) as record:
            if record is not None:
                self.report.say(f"finished by another attempt: {kept} is reused")
            yield record

    def record_consumer(self, run: RunPlan, plans: Iterable[ArtifactPlan], tokens: int) -> None:
        """Note beside each artifact that this run read it; once, however often it is repeated.

        Raises:
            AngelshareError: when something that was read is damaged: it did not count.
        """
        self.checks.join()
        team = self.config.store.team_id()
        contents = Contents(self.store)
        consumer = Consumer(
            id=consumer_id(team, run.key),
            run=run.name,
            team=team,
            tokens_read=tokens,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        for plan in plans:
            content = contents.of(f"{plan.kind}/{plan.key}")
            self.store.artifact(plan.kind, plan.key).add_consumer(
                consumer.model_copy(update={"content_sha256": content})
            )


def _prepare_libraries(threads: int) -> None:
    """Threads as given, and no word of what concerns no user of ours.

    transformers imports torchao wherever it is installed; on import that warns of its kernels for
    other devices, and makes torch warn of it.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def job(
    *,
    rule: str,
    stage: str,
    role: Role,
    config: Mapping[str, Any],
    sidecar: str | Path,
    attempts: Path,
    log: str | Path,
    wildcards: Mapping[str, str] | None = None,
    threads: int = 1,
    gpus: int | None = None,
    seed: int | None = None,
) -> Iterator[JobContext]:
    """Run the body of a job inside an energy window.

    Args:
        config: the workflow's configuration as plain values.
        sidecar: the job's declared sidecar, written when the body succeeds.
        attempts: the undeclared folder in which every attempt leaves its record.
        gpus: how many GPUs the job was given; None measures all that are visible.

    Raises:
        SystemExit: with status 1 after an `AngelshareError`, whose text was printed, and where a
            disk is full.
    """
    _prepare_libraries(threads)
    report = Reporter(" ".join([rule, *(wildcards or {}).values()]), Path(log))
    try:
        checked = load_config(config)
        study, store = plan_study(checked), checked.store.open()
        check_budget(checked, study, store, stage)
        what = Job(
            rule=rule,
            stage=stage,
            role=role,
            sidecar=Path(sidecar),
            attempts=attempts,
            wildcards=dict(wildcards or {}),
            seed=seed,
            gpus=gpus,
            workflow_id=checked.store.team_id(),
        )
        with (
            claimed_gpus(gpus or 0),
            TemporaryDirectory(prefix="angelshare-") as scratch,
            window(what, checked.energy, checked.carbon, idle_here(checked)) as opened,
        ):
            report.used_j = opened.used_j
            with _checking(report) as checks:
                yield JobContext(
                    config=checked,
                    study=study,
                    store=store,
                    window=opened,
                    report=report,
                    scratch=Path(scratch),
                    checks=checks,
                )
    except Terminated:
        if preempted() and queue_again():
            report.say("preempted: back in the queue, to go on from here")
        raise
    except AngelshareError as error:
        report.say(f"error: {error}")
        raise SystemExit(1) from error
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            report.say(traceback.format_exc())
            raise
        where = f": {error.filename}" if error.filename else ""
        report.say(
            f"error: {error.strerror}{where}. The job works in {gettempdir()} and writes its "
            "results at its end. Free space there, or point TMPDIR at a larger disk, and run again."
        )
        raise SystemExit(1) from error


@contextmanager
def artifact_job(
    kind: str, key: str, *, recipe: Recipe, manifest: str, **job_settings: Any
) -> Iterator[tuple[JobContext, ArtifactPlan]]:
    """Run the body of a job after which the artifact ``kind``/``key`` is whole.

    Args:
        recipe: what decides it.
        manifest: the declared path of its manifest, which the body has the store write.
    """
    work = work_of(recipe)
    with job(
        stage=work.stage,
        role=work.role,
        attempts=Path(manifest).parent / "attempts",
        wildcards={"kind": kind, "key": key},
        **job_settings,
    ) as context:
        yield context, planned_artifact(context, key)
        made = context.store.artifact(kind, key).manifest()
        context.window.made(Path(manifest), made.content_sha256, made.bytes)


@contextmanager
def _checking(report: Reporter) -> Iterator[Checks]:
    """Checks beside the body: the job ends well only if all that it read was whole."""
    checks = Checks()
    report.guard = checks.stop_if_damaged
    try:
        yield checks
        checks.join()
    except Exception:
        # Damage explains more than what reading it has led to.
        checks.join()
        raise
    finally:
        checks.close()


def idle_here(config: Config) -> Baseline | None:
    """What this host's devices draw when idle, if the prerun measured it on this very boot."""
    try:
        machine = read_json(Path(config.results, "prerun", "machine.json"))
    except (OSError, ValueError):
        return None
    if machine["run"]["boot_id"] != run_of("", None).boot_id:
        return None
    return Baseline.model_validate(machine["baseline"])


def planned_artifact(context: JobContext, key: str) -> ArtifactPlan:
    """The plan of an artifact; `AngelshareError` when the configuration no longer asks for it."""
    return _planned(context.study.artifacts, f"artifact {key}", key)


def planned_run(context: JobContext, run: str) -> RunPlan:
    """The plan of a student run; `AngelshareError` when the configuration no longer asks for it."""
    return _planned(context.study.runs, f"run {run}", run)


def _planned(plans: Mapping[str, Plan], what: str, name: str) -> Plan:
    try:
        return plans[name]
    except KeyError:
        raise AngelshareError(
            f"the configuration asks for no {what}. It changed while the workflow ran: start it "
            "again."
        ) from None
