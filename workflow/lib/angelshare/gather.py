"""From files to what accounting works on: manifests, consumers, scores, attempt folders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from angelshare.accounting import study as accounting
from angelshare.config import Config
from angelshare.energy.attempts import close_dead
from angelshare.errors import AngelshareError
from angelshare.evaluation.scores import benchmark_of, counted
from angelshare.files import read_json
from angelshare.planning.stored import stored_predictions
from angelshare.plans import ArtifactPlan, RunPlan, Study
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.changes import Contents
from angelshare.store.consumers import consumer_id

ScoreRecord = Mapping[str, Any]
"""A `angelshare.evaluation.scores.Score` as plain values."""


def charged(plan: ArtifactPlan) -> bool:
    """Whether an artifact is on the bill of its readers. The embedded teacher's own training is
    not: it is stated apart, like a real teacher's pretraining."""
    return plan.kind != "model" or plan.assistant


def gather(config: Config, study: Study, store: ArtifactStore) -> accounting.Study:
    """Read what the finished jobs of a study left behind."""
    results = Path(config.results)
    teacher_scores = _teacher_scores(study, store)
    known = study.artifacts.keys() - {plan.key for plan in unrecorded(study, store)}
    runs, scores = [], []
    several = study.with_several_teachers()
    for run in study.runs.values():
        taught_by = {"teacher": run.taught_by} if run.pipeline in several else {}
        training = read_json(results / "students" / run.trained_name / "training.json")
        runs.append(
            accounting.Run(
                run=run.name,
                pipeline=run.pipeline,
                student=run.shown_as,
                dataset=run.dataset,
                seed=run.seed,
                hyperparameters={**run.hyperparameters, **taught_by},
                artifacts=tuple((p.kind, p.key) for p in run.billed() if p.key in known),
                tokens=training["trained_tokens"],
                parameters=training["parameters"],
                teacher_scores=("scores", run.scores.key) if run.scores else None,
                inference_batch_size=config.evaluation.batch_size,
                trained_as=run.trained_as,
                teacher_online=run.on_policy,
            )
        )
        scores.extend(_scores(run, config, teacher_scores))
        scores.append(
            accounting.Score(
                run=run.name,
                benchmark="validation_cross_entropy",
                score=training["cross_entropy"],
                in_quality=False,
            )
        )
    return accounting.Study(
        team=config.store.team_id(),
        runs=tuple(runs),
        artifacts=_artifacts(study, store, known),
        scores=tuple(scores),
        sources=_sources(study, store, results, known),
        predictions=tuple(stored_predictions(results)),
    )


def outdated(study: Study, store: ArtifactStore, team: str) -> list[str]:
    """One line for each run of this team that read what an artifact no longer is."""
    contents, found = Contents(store), []
    for run in study.trainings.values():
        for plan in run.upstream():
            now = contents.of(f"{plan.kind}/{plan.key}")
            read = [
                consumer.content_sha256
                for consumer in store.artifact(plan.kind, plan.key).consumers()
                if consumer.id == consumer_id(team, run.key)
            ]
            if now is not None and any(then not in (None, now) for then in read):
                found.append(
                    f"{run.name} was trained when {plan.kind} {plan.key[:12]} had other content "
                    f"({(read[0] or '')[:12]} then, {now[:12]} now): remove its folder under "
                    "students/ to train it again"
                )
    return found


def unrecorded(study: Study, store: ArtifactStore) -> list[ArtifactPlan]:
    """Artifacts on nobody's bill of which nothing is known here: neither content nor cost.

    What was made from one is here or was fetched, without a word of what that one cost.
    """
    return [
        plan
        for plan in study.artifacts.values()
        if not charged(plan)
        and not (artifact := store.artifact(plan.kind, plan.key)).manifest_path.exists()
        and not any(artifact.attempts.glob("*.json"))
    ]


def score_records(config: Config, run: RunPlan) -> list[ScoreRecord]:
    """What a run scores: by rule, then by judges."""
    records: list[ScoreRecord] = read_json(Path(config.results, "scores", f"{run.name}.json"))
    for one in config.evaluation.judged:
        records += read_json(Path(config.results, "judgements", one.benchmark, f"{run.name}.json"))
    return records


def _teacher_scores(study: Study, store: ArtifactStore) -> dict[str, dict[str, ScoreRecord]]:
    """Each teacher evaluation's scores by benchmark, by the key of its artifact."""
    return {
        key: {
            benchmark_of(record): record
            for path in store.artifact(plan.kind, key).paths()
            if path.suffix == ".json"
            for record in read_json(path)
        }
        for key, plan in study.artifacts.items()
        if plan.kind in ("scores", "judgements")
    }


def _scores(
    run: RunPlan, config: Config, teacher_scores: dict[str, dict[str, ScoreRecord]]
) -> list[accounting.Score]:
    compared = [plan for plan in run.compared_with() if plan.key in teacher_scores]
    teacher = {name: one for plan in compared for name, one in teacher_scores[plan.key].items()}
    records = score_records(config, run)
    in_quality = counted(records, config.evaluation.tasks)
    cited = config.cited_scores(run.compared_with_teacher)
    found = []
    for record in records:
        name = benchmark_of(record)
        compared_with: dict[str, Any] = {}
        if name in in_quality and (published := cited.get(record["task"])):
            compared_with = {
                "teacher_score": published.score,
                "teacher_stderr": published.stderr,
                "teacher_source": f"cited from {published.source}",
            }
        elif name in teacher:
            compared_with = {
                "teacher_score": _same_problems(run, record, teacher[name]),
                "teacher_stderr": teacher[name]["stderr"],
            }
        found.append(
            accounting.Score(
                run=run.name,
                benchmark=name,
                score=record["value"],
                stderr=record["stderr"],
                in_quality=name in in_quality,
                **compared_with,
            )
        )
    return found


def _same_problems(run: RunPlan, student: ScoreRecord, teacher: ScoreRecord) -> float:
    """The teacher's score; `AngelshareError` where it was asked other problems."""
    if student["problems_sha256"] != teacher["problems_sha256"]:
        raise AngelshareError(
            f"{run.name} and its teacher were asked different problems of {student['task']} (its "
            f"data changed meanwhile): remove scores/{run.name}.finished.json under the results, "
            "and the teacher's scores where they are the older ones"
        )
    return float(teacher["value"])


def _artifacts(
    study: Study, store: ArtifactStore, known: Collection[str]
) -> tuple[accounting.Artifact, ...]:
    found = []
    for plan in (study.artifacts[key] for key in study.artifacts if key in known):
        artifact = store.artifact(plan.kind, plan.key)
        # One that nothing needed any more may be gone; its bill and its consumers are not.
        manifest = artifact.manifest() if artifact.manifest_path.exists() else None
        found.append(
            accounting.Artifact(
                kind=plan.kind,
                key=plan.key,
                label=plan.label,
                tokens=manifest.tokens if manifest else 0,
                bytes=manifest.bytes if manifest else 0,
                charged=charged(plan),
                consumers=tuple(
                    accounting.Consumer(c.id, c.run, c.team, c.tokens_read, c.utc)
                    for c in artifact.consumers()
                ),
            )
        )
    return tuple(found)


def _sources(
    study: Study, store: ArtifactStore, results: Path, known: Collection[str]
) -> tuple[accounting.AttemptSource, ...]:
    """Every folder of attempt records, and whose bill it is."""
    shared = [
        accounting.AttemptSource(
            store.artifact(plan.kind, plan.key).attempts,
            artifact_kind=plan.kind,
            artifact_key=plan.key,
        )
        for key, plan in study.artifacts.items()
        if key in known
    ]
    trained = study.trainings
    own = [
        accounting.AttemptSource(folder, run=run)
        for run in study.runs
        for folder in (
            *([results / "students" / run / "energy.attempts"] if run in trained else []),
            results / "scores" / f"{run}.energy.attempts",
            *(
                results / kind / benchmark / f"{run}.energy.attempts"
                for kind in ("answers", "judgements")
                for benchmark in study.judged
            ),
        )
    ]
    apart = [accounting.AttemptSource(results / "prerun" / "energy.attempts")]
    apart += [
        accounting.AttemptSource(results / "overlap" / f"{name}.energy.attempts")
        for name in study.datasets
    ]
    sources = (*shared, *own, *apart)
    for source in sources:
        # Job and sampler may have died together, and no later attempt closed their record.
        close_dead(source.folder)
    return sources
