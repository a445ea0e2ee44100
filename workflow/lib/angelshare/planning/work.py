"""What a study still needs: one item per job, with the model it runs and the tokens it takes.

Rows are known from the configuration. Tokens per row come from this store's records of the same
dataset, else from the configured lengths as wide bounds (`lengths`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from angelshare.config import Config
from angelshare.evaluation.judges.settings import JudgedSettings
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.planning.lengths import ASSUMED, Length, answers, problems, questions
from angelshare.planning.models import ModelSize
from angelshare.planning.ranges import NOTHING, Range
from angelshare.planning.records import ON_POLICY, History, online_operations, operations
from angelshare.planning.study_models import study_models
from angelshare.plans import WORK, ArtifactPlan, RunPlan, Study
from angelshare.reuse import sources
from angelshare.settings import Settings
from angelshare.store.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """A job that a study needs."""

    rule: str
    stage: str
    wildcards: Mapping[str, str]
    label: str
    action: str
    """`fetch`, `prepare`, `generate`, `train` or `evaluate`."""
    done: bool
    run: str | None = None
    artifact: tuple[str, str] | None = None
    model: ModelSize | None = None
    unknown: str | None = None
    """Why its cost cannot be told, where it cannot."""
    flops: Range | None = None
    """Operations of its model; None where it runs none."""
    tokens: Range | None = None
    costs_like: str = ""
    """The kind of work whose records tell what it costs, where it is not the stage's."""

    @property
    def kind(self) -> str:
        """What `History.stages` and `COMPUTE` have it under."""
        return self.costs_like or self.stage

    @property
    def job(self) -> str:
        """The name that accounting gives this job."""
        owner = f"run {self.run}" if self.run else "/".join(self.artifact or ())
        named = ",".join(f"{name}={self.wildcards[name]}" for name in sorted(self.wildcards))
        return f"{self.rule}[{named}]@{owner}"


@dataclass(frozen=True, slots=True)
class Reused:
    """An artifact that is there already; `layer` names the store it lies in, if not this one."""

    plan: ArtifactPlan
    layer: str | None


def reused(study: Study, store: ArtifactStore) -> list[Reused]:
    """The artifacts of the study that need no work."""
    found = []
    for plan in study.artifacts.values():
        artifact = store.artifact(plan.kind, plan.key)
        if artifact.manifest_path.exists():
            home = artifact.store
            found.append(Reused(plan, None if home is store else str(home.root)))
    return found


class WorkList:
    """Makes the items of a study, done or not."""

    def __init__(
        self,
        config: Config,
        study: Study,
        store: ArtifactStore,
        history: History,
        offers: Mapping[str, str],
    ) -> None:
        self.config, self.study, self.store, self.history = config, study, store, history
        self.offers = offers
        self.models = study_models(config)

    def items(self) -> Iterator[WorkItem]:
        """Every job of the study but the prerun, sealing (a moment), accounting and the report."""
        for key, source in sources(self.study, self.store, self.offers).items():
            plan = self.study.artifacts[key]
            if source == "remote":
                yield self._fetch(plan)
            elif source != "not needed":
                yield from self._artifact(plan)
        for run in self.study.runs.values():
            if run.trained_as is None:
                yield self._training(run)
            yield self._evaluation(run)
            yield from self._judged(run)

    # -- artifacts --------------------------------------------------------------------------------

    def _artifact(self, plan: ArtifactPlan) -> Iterator[WorkItem]:
        artifact = self.store.artifact(plan.kind, plan.key)
        whole = artifact.manifest_path.exists()
        if plan.assistant:
            yield self._assistant(plan, whole or artifact.receipt_path(0).exists())
            return
        work = WORK[plan.kind]
        model, runs_model = self._runs(plan)
        rows, length = self._part_rows(plan), self._length(plan)
        tokens = None
        if runs_model and rows is not None:
            tokens = length.tokens.scaled(rows)
        for part in range(plan.parts):
            yield self._item(
                work.rule,
                work.stage,
                {"kind": plan.kind, "key": plan.key, "part": f"{part:05d}"},
                f"{plan.kind} {plan.label}",
                self._action(plan),
                whole or artifact.receipt_path(part).exists(),
                artifact=(plan.kind, plan.key),
                model=model,
                tokens=tokens,
                length=length,
                runs_model=runs_model,
            )

    def _runs(self, plan: ArtifactPlan) -> tuple[ModelSize | None, bool]:
        """The model that makes an artifact, as far as it is known, and whether one runs here."""
        if isinstance(plan.settings, JudgedSettings) and plan.kind == "judgements":
            return self._judge(plan.settings.judge)
        return self.models.get(f"teacher {plan.name}"), plan.kind not in ("dataset", "tokenizer")

    def _judge(self, name: str) -> tuple[ModelSize | None, bool]:
        return self.models.get(f"judge {name}"), self.config.judges[name].endpoint is None

    def _assistant(self, plan: ArtifactPlan, done: bool) -> WorkItem:
        return self._item(
            "train_assistant",
            "assistant_train",
            {"kind": plan.kind, "key": plan.key, "part": "00000"},
            f"{plan.kind} {plan.label}",
            "train",
            done,
            artifact=(plan.kind, plan.key),
            model=self.models[f"teacher {plan.name}"],
            **self._training_work(self.study.assistants[plan.key]),
        )

    def _fetch(self, plan: ArtifactPlan) -> WorkItem:
        return self._item(
            "fetch",
            plan.work.stage,
            {"kind": plan.kind, "key": plan.key},
            f"{plan.kind} {plan.label} from {self.offers[plan.key]}",
            "fetch",
            self.store.artifact(plan.kind, plan.key).manifest_path.exists(),
            artifact=(plan.kind, plan.key),
        )

    def _action(self, plan: ArtifactPlan) -> str:
        if plan.kind == "dataset":
            return "fetch" if self.config.datasets[plan.name].source == "hub" else "prepare"
        if plan.kind in ("scores", "answers", "judgements"):
            return "evaluate"
        actions = {"tokenizer": "prepare", "model": "train"}
        return actions.get(plan.kind, "generate")

    def _part_rows(self, plan: ArtifactPlan) -> float | None:
        """Rows of one part; None where the configuration does not bound them."""
        if plan.kind == "model":
            return float(plan.recipe["settings"]["steps"] * plan.recipe["settings"]["batch_size"])
        if plan.kind == "scores":
            return self._problems(plan.inputs.get("dataset"), plan.settings)[0]
        if plan.kind == "answers":
            return questions(plan.settings)[0]
        if plan.kind == "judgements":
            return None
        if "splits" not in plan.recipe:
            return 0.0
        source = plan.inputs["sequences"]
        dataset = source.inputs["sequences"] if source.kind == "corpus" else source
        rows = self._dataset_rows(dataset, plan.recipe["splits"])
        return None if rows is None else rows / plan.parts

    def _dataset_rows(self, dataset: ArtifactPlan, splits: list[str]) -> float | None:
        source: Any = dataset.settings
        counts = {"train": source.labelled, "unlabelled": source.unlabelled}
        rows = [counts[split] for split in splits]
        if None not in rows:
            return float(sum(count or 0 for count in rows))
        artifact = self.store.artifact("dataset", dataset.key)
        if not artifact.manifest_path.exists():
            return None
        apart = source.unlabelled + source.validation + source.test
        return float(artifact.manifest().rows - apart + (apart if "unlabelled" in splits else 0))

    def _length(self, plan: ArtifactPlan) -> Length:
        """How long the rows of an artifact are."""
        if plan.kind == "model":
            return Length(ASSUMED.scaled(plan.recipe["settings"]["max_length"]))
        if plan.kind == "scores":
            dataset = plan.inputs.get("dataset")
            seen = self._seen("teacher_evaluate", dataset.key) if dataset else None
            return seen or self._problems(dataset, plan.settings)[1]
        if plan.kind == "answers":
            return questions(plan.settings)[1]
        if plan.kind == "corpus":
            seen = self._seen("teacher_generation", plan.inputs["sequences"].key)
            return seen or answers(plan.recipe["decoding"]["max_new_tokens"])
        if plan.kind == "logits":
            seen = self._seen("teacher_logits", plan.inputs["sequences"].key)
            return seen or Length(ASSUMED.scaled(plan.recipe["capture"]["max_length"]))
        if plan.kind == "states":
            read = plan.inputs["sequences"].key
            seen = self._seen("teacher_hidden", read) or self._seen("teacher_logits", read)
            return seen or Length(ASSUMED.scaled(plan.recipe["states"]["max_length"]))
        return Length(NOTHING)

    def _seen(self, stage: str, dataset: str) -> Length | None:
        """How long rows are as records of this dataset have them, with their spread."""
        found = self.history.read(stage, dataset)
        if not found:
            return None
        lengths = [one.tokens_per_row or 0.0 for one in found]
        mean = fmean(lengths)
        factor = max(1.1, max(lengths) / mean, mean / min(lengths))
        decoded = fmean(one.decoded for one in found)
        return Length(Range(mean, mean / factor, mean * factor), decoded)

    def _problems(self, dataset: ArtifactPlan | None, settings: Settings) -> tuple[float, Length]:
        """As `lengths.problems`; ``dataset`` is the one that the project's own tasks ask."""
        assert isinstance(settings, EvaluationSettings)
        own_rows = self.config.datasets[dataset.name].test if dataset else None
        return problems(settings, own_rows)

    # -- runs -------------------------------------------------------------------------------------

    def _training(self, run: RunPlan) -> WorkItem:
        return self._item(
            "train_student",
            "student_train",
            {"run": run.name},
            f"train {run.name}",
            "train",
            Path(self.config.results, "students", run.name, "training.json").exists(),
            run=run.name,
            model=self.models[f"student {run.student}"],
            **self._training_work(run),
        )

    def _training_work(self, run: RunPlan) -> dict[str, Any]:
        """The tokens that a training takes, and how long its rows are."""
        settings = run.training
        per_step = settings.batch_size * settings.accumulation
        steps = float(settings.max_steps)
        datasets = [run.inputs[lesson.role("dataset")] for lesson in run.lessons]
        rows = [self._dataset_rows(plan, run.recipe["splits"]) for plan in datasets]
        known = [count for count in rows if count is not None]
        if settings.max_epochs is not None and len(known) == len(rows):
            steps = min(steps, math.ceil(settings.max_epochs * sum(known) / per_step))
        least = min(steps, float(settings.stopping.patience * settings.eval_every))
        read = run.inputs.get("corpus", run.inputs["dataset"])
        seen = self._seen("student_train", read.key)
        length = seen or Length(ASSUMED.scaled(settings.max_length))
        per_row = length.tokens
        tokens = per_row.scaled(steps * per_step)
        tokens = tokens._replace(low=tokens.low * least / steps)
        held_out = sum(self.config.datasets[lesson.dataset].validation for lesson in run.lessons)
        return {
            "tokens": tokens,
            "length": length,
            "validated": per_row.value * held_out * (1 + steps / settings.eval_every),
            "runs_model": True,
            **self._beside(run, tokens, per_row),
        }

    def _beside(self, run: RunPlan, tokens: Range, per_row: Range) -> dict[str, Any]:
        """What a teacher in memory and the student's own answers add to a training."""
        if not run.on_policy:
            return {}
        student = self.models[f"student {run.student}"]
        teacher = self.models[f"teacher {next(iter(run.teachers))}"]
        share = run.recipe["on_policy"]["student_share"]
        more = (online_operations(student, teacher, share, n, per_row.value) for n in tokens)
        return {"costs_like": ON_POLICY, "more": Range(*more)}

    def _evaluation(self, run: RunPlan) -> WorkItem:
        dataset = run.inputs["dataset"]
        rows, length = self._problems(dataset, self.config.evaluation)
        length = self._seen("evaluate", dataset.key) or length
        return self._item(
            "evaluate_student",
            "evaluate",
            {"run": run.name},
            f"evaluate {run.name}",
            "evaluate",
            Path(self.config.results, "scores", f"{run.name}.json").exists(),
            run=run.name,
            model=self.models[f"student {run.student}"],
            tokens=length.tokens.scaled(rows),
            length=length,
            runs_model=True,
        )

    def _judged(self, run: RunPlan) -> Iterator[WorkItem]:
        """Answers and verdicts; how long these are, nothing here says."""
        for benchmark, judged in self.study.judged.items():
            student = self.models[f"student {run.student}"], True
            rows, length = questions(judged.settings)
            known: dict[str, Any] = {"tokens": length.tokens.scaled(rows), "length": length}
            for rule, stage, kind, (model, runs_model), work in (
                ("answer_student", "evaluate", "answers", student, known),
                (
                    "judge_student",
                    "judge",
                    "judgements",
                    self._judge(judged.settings.judge),
                    dict[str, Any](),
                ),
            ):
                yield self._item(
                    rule,
                    stage,
                    {"run": run.name, "benchmark": benchmark},
                    f"{kind} of {run.name} on {benchmark}",
                    "evaluate",
                    Path(self.config.results, kind, benchmark, f"{run.name}.json").exists(),
                    run=run.name,
                    model=model,
                    runs_model=runs_model,
                    **work,
                )

    def _item(
        self,
        rule: str,
        stage: str,
        wildcards: Mapping[str, str],
        label: str,
        action: str,
        done: bool,
        *,
        run: str | None = None,
        artifact: tuple[str, str] | None = None,
        model: ModelSize | None = None,
        tokens: Range | None = None,
        length: Length | None = None,
        validated: float = 0.0,
        more: Range = NOTHING,
        costs_like: str = "",
        runs_model: bool = False,
    ) -> WorkItem:
        flops = unknown = None
        if runs_model and (model is None or tokens is None or length is None):
            unknown = "the model's size" if model is None else "the number of rows"
        elif runs_model and tokens is not None and length is not None:
            each = length.tokens.value, validated, length.decoded
            work = (operations(stage, model, count, *each) for count in tokens)
            flops = Range(*(a + b for a, b in zip(work, more, strict=True)))
        return WorkItem(
            rule=rule,
            stage=stage,
            wildcards=dict(wildcards),
            label=label,
            action=action,
            done=done,
            run=run,
            artifact=artifact,
            model=model if runs_model else None,
            unknown=unknown,
            flops=flops,
            tokens=tokens if runs_model else None,
            costs_like=costs_like,
        )
