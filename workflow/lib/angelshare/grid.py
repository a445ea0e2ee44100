"""From the configuration to the study: every artifact and every student run, with recipe and key.

A pure computation at parse time: the DAG names artifacts by the keys found here, so a dry run
already shows what will be reused and what will be generated. Inputs enter a recipe by role.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from angelshare.config import Config, GridBlock, PipelineSettings, block_of
from angelshare.data.settings import AnswerFilter, DataSource
from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.fingerprints import Fingerprints
from angelshare.plans import ArtifactPlan, Judged, Lesson, RunPlan, Study, reading_role
from angelshare.published import published
from angelshare.recipes import Recipe, make_recipe, recipe_key
from angelshare.settings import Settings
from angelshare.student.settings import LossSettings, TrainingSettings
from angelshare.teacher.settings import (
    AssistantTeacher,
    DecodingSettings,
    EmbeddedTeacher,
    PretrainedTeacher,
    StatesCapture,
)


def plan_study(config: Config) -> Study:
    """Expand the configuration's grid into artifacts and runs. Reads no artifact."""
    planner = _Planner(config)
    study = Study(evaluation=planner.evaluation(config.evaluation), judged=planner.judged())
    for block in config.grid:
        for run in planner.runs(block):
            study.runs[run.name] = run
            upstream = [*run.inputs.values(), *run.compared_with()]
            for top in upstream:
                if top.key not in study.artifacts:
                    study.artifacts.update((plan.key, plan) for plan in top.closure())
    study.assistants.update(
        (key, run) for key, run in planner.assistants.items() if key in study.artifacts
    )
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
        self.assistants: dict[str, RunPlan] = {}

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
        if isinstance(teacher, AssistantTeacher):
            run = next(self.runs(block_of(teacher)))
            model = self.artifact("model", name, run.inputs, teacher, student=run.recipe)
            self.assistants[model.key] = run
            return {"teacher": model}, {}
        named = self.fingerprints.model(teacher.model, teacher.revision)
        if teacher.trust_remote_code:
            named["trust_remote_code"] = True
        return {}, {"teacher": named}

    @_once
    def read_with(self, name: str) -> ArtifactPlan | None:
        """The tokenizer of a teacher; None where it came with a pretrained model."""
        teacher = self.config.teachers[name]
        if isinstance(teacher, EmbeddedTeacher):
            return self.tokenizer(teacher.tokenizer)
        if isinstance(teacher, AssistantTeacher):
            return next(self.runs(block_of(teacher))).inputs.get("tokenizer")
        return None

    def first_of_chain(self, teacher: str) -> str:
        """The teacher that an assistant's chain begins with: all quality is relative to it."""
        entry = self.config.teachers[teacher]
        if isinstance(entry, AssistantTeacher) and entry.teacher:
            return self.first_of_chain(entry.teacher)
        return teacher

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
    def logits(self, data: _Data, teacher: str, read: str, answering: str) -> ArtifactPlan:
        capture = self.config.capture
        label = str(capture.codec)
        return self.captured(
            "logits", data, teacher, read, answering, capture, label, capture=capture
        )

    @_once
    def states(self, data: _Data, teacher: str, read: str, name: str) -> ArtifactPlan:
        states = StatesCapture.of(self.config.states[name], self.config.capture)
        label = str(states)
        return self.captured("states", data, teacher, read, teacher, states, label, states=states)

    def captured(
        self,
        kind: str,
        data: _Data,
        teacher: str,
        read: str,
        answering: str,
        settings: Settings,
        label: str,
        **recipe: Settings,
    ) -> ArtifactPlan:
        """What a teacher's forward pass leaves, in parts, over a dataset or over the corpus that
        the teacher ``answering`` made of it."""
        inputs, named = self.teacher(teacher)
        splits = _splits(read)
        if read == "corpus":
            named |= data.filtered()
        sequences = (
            self.corpus(data, answering)
            if read == "corpus"
            else self.dataset(data.name, data.labelled)
        )
        return self.artifact(
            kind,
            teacher,
            {**inputs, "sequences": sequences},
            settings,
            parts=self.parts(self.source(data.name, data.labelled), splits),
            label=f"{teacher} on {sequences.label}, {label}",
            splits=splits,
            part_rows=self.config.hardware.part_rows,
            **{name: one.identity() for name, one in recipe.items()},
            **named,
        )

    @_once
    def scores(self, dataset: str, teacher: str) -> ArtifactPlan | None:
        """The teacher's scores of what is not cited, if there is any such task; one artifact for
        all datasets unless a task asks one of them."""
        settings = self.config.evaluation.without(self.config.cited_scores(teacher))
        if not settings.tasks:
            return None
        inputs, named = self.teacher(teacher)
        own = settings.own_tasks
        return self.artifact(
            "scores",
            teacher,
            {**inputs, "dataset": self.dataset(dataset)} if own else inputs,
            settings,
            label=f"{teacher} on {dataset}" if own else f"{teacher} on the benchmarks",
            evaluation=self.evaluation(settings),
            **named,
        )

    @_once
    def init(self, student: str) -> dict[str, Any]:
        """What a recipe says of a student's initial weights."""
        return self.fingerprints.student(self.config.students[student].init)

    def evaluation(self, settings: EvaluationSettings) -> Recipe:
        """What decides a score besides the model and the dataset."""
        recipe = settings.identity()
        if settings.task_folder is not None:
            recipe["task_folder"] = {"sha256": self.fingerprints.folder(settings.task_folder)}
        return recipe

    def located(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Where a file lies, and what a recipe says of its content.

        A published file that was not fetched yet is known by its sha256 in the configuration, or
        provisionally by its name. `AngelshareError` where the file is not that one.
        """
        file = published(name)
        if file is None:
            return Path(name), {"sha256": self.fingerprints.file(name)}
        revision, known = self.config.revisions[file.revision_name], self.config.files[name]
        place = file.place(revision)
        if known and place.is_file() and self.fingerprints.file(place) != known:
            raise AngelshareError(
                f"{place} is not the file that was fetched: its sha256 is not the one under files. "
                "Run `angelshare resolve`, which fetches it again"
            )
        return place, {"sha256": known} if known else {"published": name, "revision": revision}

    @_once
    def judged(self) -> dict[str, Judged]:
        """The judged benchmarks, with what decides their answers and verdicts."""
        found: dict[str, Judged] = {}
        for named in self.config.evaluation.judged:
            located = {name: self.located(getattr(named, name)) for name in named.files}
            settings = named.model_copy(update={n: str(path) for n, (path, _) in located.items()})
            files = {name: content for name, (_, content) in located.items()}
            asked_from = {name: files[name] for name in settings.asked_from}
            judge = self.config.judges[settings.judge]
            who = judge.identity()
            if judge.endpoint is None:
                del who["revision"]
                who["model"] = self.fingerprints.model(judge.model, judge.revision)
            found[settings.benchmark] = Judged(
                settings=settings,
                answers={"benchmark": settings.identity(), "files": asked_from},
                judgements={
                    "benchmark": settings.benchmark,
                    "limit": settings.limit,
                    "files": files,
                    "judge": who,
                },
            )
        return found

    @_once
    def judgements(self, teacher: str) -> dict[str, ArtifactPlan]:
        """The judgements of a teacher's answers, by benchmark; of those that are not cited."""
        inputs, named = self.teacher(teacher)
        found, cited = {}, self.config.cited_scores(teacher)
        for name, judged in self.judged().items():
            if name in cited:
                continue
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
        if self.config.pipelines[block.pipeline].divergence:
            loss = self.config.loss_of(block.pipeline)
            varied["temperature"] = block.temperature or [loss.temperature]
            varied["alpha"] = block.alpha or [loss.alpha]
        varied = {name: values for name, values in varied.items() if values}
        training, answers = self.config.training_of(block), self.config.answers_of(block)
        decoding = functools.cache(functools.partial(self.config.generation_of, block))
        for lessons, student, values, seed in itertools.product(
            block.lessons,
            block.students,
            itertools.product(*varied.values()),
            block.seeds,
        ):
            chosen = dict(zip(varied, map(float, values), strict=True))
            labelled, longest = map(_whole, map(chosen.get, ("labelled", "max_new_tokens")))
            learnt = [
                (one, _Data(one.dataset, labelled, decoding(longest), answers)) for one in lessons
            ]
            run = self.run(block, training, learnt, student, chosen, seed)
            yield run
            if quantised := self.config.students[student].quantised:
                name = f"{run.name}-{quantised}"
                yield replace(run, name=name, quantised=quantised, trained_as=run.name)

    def run(
        self,
        block: GridBlock,
        training: TrainingSettings,
        lessons: list[tuple[Lesson, _Data]],
        student: str,
        varied: dict[str, float],
        seed: int,
    ) -> RunPlan:
        config = self.config
        pipeline = config.pipelines[block.pipeline]
        inputs = {
            one.role("dataset"): self.dataset(data.name, data.labelled) for one, data in lessons
        }
        init = config.students[student]
        loss = config.loss_of(block.pipeline).model_copy(
            update={name: varied[name] for name in ("temperature", "alpha") if name in varied}
        )
        named: dict[str, Any] = {}
        lender = config.teachers.get(init.tokenizer_of or "")
        if isinstance(lender, PretrainedTeacher):
            named["tokenizer_of"] = self.fingerprints.model(lender.model, lender.revision)
        if init.lora is not None:
            named["lora"] = init.lora.identity()
        if init.tokenizer is not None:
            inputs["tokenizer"] = self.tokenizer(init.tokenizer)
        first = next(iter(block.taught_by), None)
        judging = self.first_of_chain(first) if first else None
        for one, data in lessons:
            inputs |= self.lesson(pipeline, loss, one, data)
        if pipeline.data == "corpus":
            named |= lessons[0][1].filtered()
        if pipeline.logits and block.teachers:
            named["teachers"] = list(block.teachers.values())
        if pipeline.on_policy:
            beside, pretrained = self.teacher(_needed(first))
            inputs |= beside
            named |= {**pretrained, "on_policy": pipeline.on_policy.identity()}
        terms = loss.terms(inputs.keys() | named.keys())
        if terms:
            named["loss"] = terms
        recipe = make_recipe(
            "student",
            inputs={role: {"kind": p.kind, "key": p.key} for role, p in inputs.items()},
            init=self.init(student),
            splits=_splits(pipeline.data),
            training=training.identity(),
            seed=seed,
            **named,
        )
        key = recipe_key("student", recipe)
        settings = [f"{name[0].upper()}{value:g}" for name, value in varied.items()]
        learnt = [data.name for _, data in lessons]
        return RunPlan(
            name="-".join([block.pipeline, student, *learnt, *settings, f"s{seed}", key[:8]]),
            key=key,
            recipe=recipe,
            pipeline=block.pipeline,
            student=student,
            lessons=tuple(one for one, _ in lessons),
            seed=seed,
            hyperparameters=varied,
            training=training,
            loss=loss,
            inputs=inputs,
            compared_with_teacher=judging,
            scores=self.scores(learnt[0], judging) if judging else None,
            judged=self.judgements(judging) if judging else {},
        )

    def lesson(
        self, pipeline: PipelineSettings, loss: LossSettings, lesson: Lesson, data: _Data
    ) -> dict[str, ArtifactPlan]:
        """What a run reads of a teacher's work on one dataset, by role."""
        inputs: dict[str, ArtifactPlan] = {}
        first = next(iter(lesson.teachers), None)
        if pipeline.data == "corpus":
            inputs[lesson.role("corpus")] = self.corpus(data, _needed(first))
        for name, role in lesson.caches.items() if pipeline.logits else ():
            inputs[role] = self.logits(data, name, pipeline.data, _needed(first))
            if loss.by_rank and (read_with := self.read_with(name)):
                inputs[reading_role(role)] = read_with
        for role, name in pipeline.states.items():
            inputs[role] = self.states(data, _needed(first), pipeline.data, name)
        return inputs


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


def _splits(data: str) -> list[str]:
    """The rows a pipeline trains on: the labelled ones, or every prompt the teacher answers."""
    return ["train", "unlabelled"] if data == "corpus" else ["train"]


def _needed(teacher: str | None) -> str:
    """The teacher's name; the configuration was checked to have one where it is needed."""
    if teacher is None:
        raise TypeError("a pipeline that reads teacher artifacts has no teacher")
    return teacher
