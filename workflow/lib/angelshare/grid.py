"""From the configuration to the study: every artifact and every student run, with recipe and key.

A pure computation at parse time: the DAG names artifacts by the keys found here, so a dry run
already shows what will be reused and what will be generated. Inputs enter a recipe by role.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from angelshare.config import Config, GridBlock, PipelineSettings
from angelshare.data.settings import AnswerFilter, DataSource
from angelshare.evaluation.judges.settings import JudgedSettings
from angelshare.fingerprints import Fingerprints
from angelshare.recipes import Recipe, make_recipe, recipe_key
from angelshare.settings import Settings
from angelshare.student.settings import LossSettings, TrainingSettings
from angelshare.teacher.settings import DecodingSettings, EmbeddedTeacher, PretrainedTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPlan:
    """An artifact that the study needs."""

    kind: str
    key: str
    recipe: Recipe
    parts: int
    inputs: dict[str, ArtifactPlan]
    """The artifacts it is made from, by role."""
    name: str
    """The configuration's entry it comes from: a dataset, a tokenizer or a teacher."""
    label: str
    """What it is, for people."""
    settings: Settings
    """What its job works with, whatever part of it is in the recipe."""

    def closure(self) -> Iterator[ArtifactPlan]:
        """This artifact and everything it is made from, inputs first, each once."""
        seen: dict[str, ArtifactPlan] = {}
        for upstream in self.inputs.values():
            seen.update((plan.key, plan) for plan in upstream.closure())
        yield from seen.values()
        yield self


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A student run."""

    name: str
    key: str
    recipe: Recipe
    pipeline: str
    student: str
    dataset: str
    teacher: str | None
    seed: int
    hyperparameters: dict[str, float]
    """What the grid varies for this run besides its names and seed."""
    training: TrainingSettings
    loss: LossSettings
    inputs: dict[str, ArtifactPlan]
    """The artifacts it reads, by role: ``dataset``, ``tokenizer``, ``corpus``, ``logits``."""
    scores: ArtifactPlan | None
    """The teacher's own scores, which say what its quality is relative to."""
    judged: dict[str, ArtifactPlan]
    """The judgements of the teacher's own answers, by benchmark."""

    @property
    def distilled(self) -> bool:
        """Whether the run learns from a teacher's work."""
        return "corpus" in self.inputs or "logits" in self.inputs

    def upstream(self) -> list[ArtifactPlan]:
        """Every artifact its training stands on, directly or not, inputs first."""
        found = {p.key: p for plan in self.inputs.values() for p in plan.closure()}
        return list(found.values())

    def billed(self) -> list[ArtifactPlan]:
        """Every artifact on this run's bill.

        The teacher's evaluation belongs to the bill of the runs that were distilled from it; a
        baseline that is merely compared with the teacher does not pay for it.
        """
        compared = self.compared_with() if self.distilled else []
        return list({plan.key: plan for plan in (*self.upstream(), *compared)}.values())

    def compared_with(self) -> list[ArtifactPlan]:
        """What the teacher's own evaluation made, inputs first."""
        answers = [plan.inputs["answers"] for plan in self.judged.values()]
        return [*([self.scores] if self.scores else []), *answers, *self.judged.values()]


@dataclass(frozen=True, slots=True)
class Judged:
    """A judged benchmark."""

    settings: JudgedSettings
    answers: Recipe
    """What decides its answers, besides the model."""
    judgements: Recipe
    """What decides the verdicts, besides the answers."""


@dataclass(frozen=True, slots=True)
class Study:
    """Everything a configuration asks for."""

    artifacts: dict[str, ArtifactPlan] = field(default_factory=dict)
    """By key."""
    runs: dict[str, RunPlan] = field(default_factory=dict)
    """By name."""
    evaluation: Recipe = field(default_factory=dict)
    """What decides a score besides the model and the dataset."""
    judged: dict[str, Judged] = field(default_factory=dict)
    """By benchmark."""

    @property
    def datasets(self) -> dict[str, ArtifactPlan]:
        """The dataset of each name; of several variants, the one with the most labelled rows."""
        found: dict[str, ArtifactPlan] = {}
        for run in self.runs.values():
            plan, known = run.inputs["dataset"], found.get(run.dataset)
            if known is None or _labelled(plan) > _labelled(known):
                found[run.dataset] = plan
        return found

    def needed(self, there: Collection[str]) -> dict[str, ArtifactPlan]:
        """What the runs read, and what has to be made for it, by key.

        Args:
            there: the keys of artifacts that need not be made, so their inputs are not needed.
        """
        todo = [
            plan
            for run in self.runs.values()
            for plan in (*run.inputs.values(), *run.compared_with())
        ]
        found: dict[str, ArtifactPlan] = {}
        while todo:
            plan = todo.pop()
            if plan.key not in found:
                found[plan.key] = plan
                if plan.key not in there:
                    todo.extend(plan.inputs.values())
        return found


def _labelled(plan: ArtifactPlan) -> float:
    count = plan.recipe["source"]["labelled"]
    return math.inf if count is None else float(count)


def plan_study(config: Config) -> Study:
    """Expand the configuration's grid into artifacts and runs. Reads no artifact."""
    planner = _Planner(config)
    study = Study(evaluation=planner.evaluation(), judged=planner.judged())
    for block in config.grid:
        for run in planner.runs(block):
            study.runs[run.name] = run
            upstream = [*run.inputs.values(), *run.compared_with()]
            for top in upstream:
                if top.key not in study.artifacts:
                    study.artifacts.update((plan.key, plan) for plan in top.closure())
    return study


Method = TypeVar("Method", bound=Callable[..., Any])


def _once(method: Method) -> Method:
    """Compute a planner's method once for each of its arguments, which are values."""

    @functools.wraps(method)
    def remembering(self: _Planner, *arguments: Any) -> Any:
        key = (method.__name__, *arguments)
        if key not in self.known:
            self.known[key] = method(self, *arguments)
        return self.known[key]

    return cast(Method, remembering)


class _Planner:
    """Builds plans; equal recipes become one plan.

    A study has few artifacts and many runs: what runs have in common, its recipe and the look at a
    model's folder, is worked out once.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fingerprints = Fingerprints(config.results)
        self.known: dict[tuple[Any, ...], Any] = {}

    # -- artifacts --------------------------------------------------------------------------------

    def artifact(
        self,
        kind: str,
        name: str,
        inputs: dict[str, ArtifactPlan],
        settings: Settings,
        /,
        *,
        parts: int = 1,
        label: str | None = None,
        **recipe: Any,
    ) -> ArtifactPlan:
        made_from = {role: {"kind": plan.kind, "key": plan.key} for role, plan in inputs.items()}
        full = make_recipe(kind, inputs=made_from, parts=parts, **recipe)
        return ArtifactPlan(
            kind=kind,
            key=recipe_key(kind, full),
            recipe=full,
            parts=parts,
            inputs=inputs,
            name=name,
            label=label or name,
            settings=settings,
        )

    def source(self, name: str, labelled: int | None) -> DataSource:
        """A dataset of the configuration, or its variant with another number of rows."""
        source = self.config.datasets[name]
        return source.model_copy(update={"labelled": labelled}) if labelled else source

    @_once
    def dataset(self, name: str, labelled: int | None = None) -> ArtifactPlan:
        source = self.source(name, labelled)
        settings = source.identity()
        if source.source == "file":
            settings["path"] = {"sha256": self.fingerprints.file(source.path)}
        label = f"{name}, {labelled} rows" if labelled else name
        return self.artifact("dataset", name, {}, source, label=label, source=settings)

    @_once
    def tokenizer(self, name: str) -> ArtifactPlan:
        trained = self.config.tokenizers[name]
        return self.artifact(
            "tokenizer",
            name,
            {},
            trained,
            settings=trained.identity(),
            problems=self.config.datasets[trained.dataset].identity(),
        )

    @_once
    def teacher(self, name: str) -> tuple[dict[str, ArtifactPlan], dict[str, Any]]:
        """The teacher as an input artifact, or as plain recipe values when it is pretrained."""
        teacher = self.config.teachers[name]
        if isinstance(teacher, EmbeddedTeacher):
            inputs = {"tokenizer": self.tokenizer(teacher.tokenizer)}
            model = self.artifact(
                "model",
                name,
                inputs,
                teacher,
                settings=teacher.demo.identity(),
                problems=self.config.datasets[teacher.dataset].identity(),
            )
            return {"teacher": model}, {}
        named = self.fingerprints.model(teacher.model, teacher.revision)
        if teacher.trust_remote_code:
            named["trust_remote_code"] = True
        return {}, {"teacher": named}

    def parts(self, source: DataSource, splits: list[str]) -> int:
        """How many jobs share these splits; one where the recipe promises no number of rows."""
        sizes = {"train": source.labelled, "unlabelled": source.unlabelled}
        rows = [sizes[split] for split in splits]
        known = [count for count in rows if count is not None]
        if len(known) < len(rows):
            return 1
        return max(1, math.ceil(sum(known) / self.config.hardware.part_rows))

    @_once
    def corpus(self, data: _Data, teacher: str) -> ArtifactPlan:
        splits = ["train", "unlabelled"]
        inputs, named = self.teacher(teacher)
        sequences = self.dataset(data.name, data.labelled)
        usual = data.decoding == self.config.generation
        return self.artifact(
            "corpus",
            teacher,
            {**inputs, "sequences": sequences},
            data.decoding,
            parts=self.parts(self.source(data.name, data.labelled), splits),
            label=f"{teacher} answers {sequences.label}"
            + ("" if usual else f", up to {data.decoding.max_new_tokens} tokens"),
            splits=splits,
            part_rows=self.config.hardware.part_rows,
            decoding=data.decoding.identity(),
            **named,
        )

    @_once
    def logits(self, data: _Data, teacher: str, pipeline: PipelineSettings) -> ArtifactPlan:
        inputs, named = self.teacher(teacher)
        splits = _splits(pipeline)
        from_corpus = pipeline.data == "corpus"
        if from_corpus:
            named |= data.filtered()
        sequences = (
            self.corpus(data, teacher) if from_corpus else self.dataset(data.name, data.labelled)
        )
        return self.artifact(
            "logits",
            teacher,
            {**inputs, "sequences": sequences},
            self.config.capture,
            parts=self.parts(self.source(data.name, data.labelled), splits),
            label=f"{teacher} on {sequences.label}, {self.config.capture.codec}",
            splits=splits,
            part_rows=self.config.hardware.part_rows,
            capture=self.config.capture.identity(),
            **named,
        )

    @_once
    def scores(self, dataset: str, teacher: str) -> ArtifactPlan:
        """The teacher's scores; one artifact for all datasets unless a task asks one of them."""
        inputs, named = self.teacher(teacher)
        own = self.config.evaluation.own_tasks
        return self.artifact(
            "scores",
            teacher,
            {**inputs, "dataset": self.dataset(dataset)} if own else inputs,
            self.config.evaluation,
            label=f"{teacher} on {dataset}" if own else f"{teacher} on the benchmarks",
            evaluation=self.evaluation(),
            **named,
        )

    @_once
    def init(self, student: str) -> dict[str, Any]:
        """What a recipe says of a student's initial weights."""
        return self.fingerprints.student(self.config.students[student].init)

    def evaluation(self) -> Recipe:
        """What decides a score besides the model and the dataset."""
        settings = self.config.evaluation
        recipe = settings.identity()
        if settings.task_folder is not None:
            recipe["task_folder"] = {"sha256": self.fingerprints.folder(settings.task_folder)}
        return recipe

    def judged(self) -> dict[str, Judged]:
        """The judged benchmarks, with what decides their answers and verdicts."""
        found: dict[str, Judged] = {}
        for settings in self.config.evaluation.judged:
            files = {
                name: {"sha256": self.fingerprints.file(path)}
                for name, path in (("data", settings.data), ("prompts", settings.prompts))
            }
            judge = self.config.judges[settings.judge]
            who = judge.identity()
            if judge.endpoint is None:
                del who["revision"]
                who["model"] = self.fingerprints.model(judge.model, judge.revision)
            found[settings.benchmark] = Judged(
                settings=settings,
                answers={"benchmark": settings.identity(), "files": files},
                judgements={
                    "benchmark": settings.benchmark,
                    "limit": settings.limit,
                    "files": files,
                    "judge": who,
                },
            )
        return found

    def judgements(self, teacher: str) -> dict[str, ArtifactPlan]:
        """The judgements of a teacher's answers, by benchmark."""
        inputs, named = self.teacher(teacher)
        found = {}
        for name, judged in self.judged().items():
            label = f"{teacher} on {name}"
            answers = self.artifact(
                "answers", teacher, inputs, judged.settings, label=label, **judged.answers, **named
            )
            found[name] = self.artifact(
                "judgements",
                teacher,
                {"answers": answers},
                judged.settings,
                label=f"{label}, by {judged.settings.judge}",
                **judged.judgements,
            )
        return found

    # -- runs -------------------------------------------------------------------------------------

    def runs(self, block: GridBlock) -> Iterator[RunPlan]:
        """The runs of one grid block, seeds innermost."""
        varied: dict[str, Sequence[float]] = {
            "labelled": block.labelled,
            "max_new_tokens": block.max_new_tokens,
        }
        if self.config.pipelines[block.pipeline].logits:
            loss = self.config.loss
            varied["temperature"] = block.temperature or [loss.temperature]
            varied["alpha"] = block.alpha or [loss.alpha]
        varied = {name: values for name, values in varied.items() if values}
        training, answers = self.config.training_of(block), self.config.answers_of(block)
        decoding = functools.cache(functools.partial(self.config.generation_of, block))
        for dataset, student, values, seed in itertools.product(
            block.datasets,
            block.students,
            itertools.product(*varied.values()),
            block.seeds,
        ):
            chosen = dict(zip(varied, map(float, values), strict=True))
            labelled, longest = map(_whole, map(chosen.get, ("labelled", "max_new_tokens")))
            data = _Data(dataset, labelled, decoding(longest), answers)
            yield self.run(block, training, data, student, chosen, seed)

    def run(
        self,
        block: GridBlock,
        training: TrainingSettings,
        data: _Data,
        student: str,
        varied: dict[str, float],
        seed: int,
    ) -> RunPlan:
        config = self.config
        pipeline = config.pipelines[block.pipeline]
        inputs = {"dataset": self.dataset(data.name, data.labelled)}
        init = config.students[student]
        loss = config.loss.model_copy(
            update={name: varied[name] for name in ("temperature", "alpha") if name in varied}
        )
        named: dict[str, Any] = {}
        lender = config.teachers.get(init.tokenizer_of or "")
        if isinstance(lender, PretrainedTeacher):
            named["tokenizer_of"] = self.fingerprints.model(lender.model, lender.revision)
        if init.tokenizer is not None:
            inputs["tokenizer"] = self.tokenizer(init.tokenizer)
        if pipeline.data == "corpus":
            inputs["corpus"] = self.corpus(data, _needed(block.teacher))
            named |= data.filtered()
        if pipeline.logits:
            inputs["logits"] = self.logits(data, _needed(block.teacher), pipeline)
            named["loss"] = loss.identity()
        recipe = make_recipe(
            "student",
            inputs={role: {"kind": p.kind, "key": p.key} for role, p in inputs.items()},
            init=self.init(student),
            splits=_splits(pipeline),
            training=training.identity(),
            seed=seed,
            **named,
        )
        key = recipe_key("student", recipe)
        settings = [f"{name[0].upper()}{value:g}" for name, value in varied.items()]
        return RunPlan(
            name="-".join([block.pipeline, student, data.name, *settings, f"s{seed}", key[:8]]),
            key=key,
            recipe=recipe,
            pipeline=block.pipeline,
            student=student,
            dataset=data.name,
            teacher=block.teacher,
            seed=seed,
            hyperparameters=varied,
            training=training,
            loss=loss,
            inputs=inputs,
            scores=self.scores(data.name, block.teacher) if block.teacher else None,
            judged=self.judgements(block.teacher) if block.teacher else {},
        )


@dataclass(frozen=True, slots=True)
class _Data:
    """What a run learns from, before the teacher has worked on it."""

    name: str
    labelled: int | None
    decoding: DecodingSettings
    answers: AnswerFilter

    def filtered(self) -> dict[str, Any]:
        """What a recipe says of the answers that are read; nothing where all of them are."""
        every = self.answers == AnswerFilter()
        return {} if every else {"answers": self.answers.identity()}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _splits(pipeline: PipelineSettings) -> list[str]:
    """The rows a pipeline trains on: the labelled ones, or every prompt the teacher answers."""
    return ["train", "unlabelled"] if pipeline.data == "corpus" else ["train"]


def _needed(teacher: str | None) -> str:
    """The teacher's name; the configuration was checked to have one where it is needed."""
    if teacher is None:
        raise TypeError("a pipeline that reads teacher artifacts has no teacher")
    return teacher
