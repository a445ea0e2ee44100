"""From the configuration to the study: every artifact and every student run, with recipe and key.

A pure computation at parse time: the DAG names artifacts by the keys found here, so a dry run
already shows what will be reused and what will be generated. Inputs enter a recipe by role.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from angelshare.artifact_plans import ArtifactPlanner, RowsAndAnswers, splits_of
from angelshare.config import Config, GridBlock, PipelineSettings
from angelshare.evaluation_plans import EvaluationPlanner
from angelshare.plans import ArtifactPlan, Lesson, RunPlan, Study, reading_role
from angelshare.recipes import make_recipe, recipe_key
from angelshare.student.settings import LossSettings, TrainingSettings
from angelshare.teacher.settings import PretrainedTeacher


def plan_study(config: Config) -> Study:
    """Expand the configuration's grid into artifacts and runs. Reads no artifact."""
    planner = _Planner(config)
    evaluations, assistants = planner.evaluations, planner.artifacts.assistants
    study = Study(evaluation=evaluations.evaluation(config.evaluation), judged=evaluations.judged())
    for block in config.grid:
        for run in planner.runs(block):
            study.runs[run.name] = run
            upstream = [*run.inputs.values(), *run.compared_with()]
            for top in upstream:
                if top.key not in study.artifacts:
                    study.artifacts.update((plan.key, plan) for plan in top.closure())
    study.assistants.update((key, run) for key, run in assistants.items() if key in study.artifacts)
    return study


class _Planner:
    """Plans the runs of a configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.artifacts = ArtifactPlanner(config, lambda block: next(self.runs(block)))
        self.evaluations = EvaluationPlanner(self.artifacts)

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
                (one, RowsAndAnswers(one.dataset, labelled, decoding(longest), answers))
                for one in lessons
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
        lessons: list[tuple[Lesson, RowsAndAnswers]],
        student: str,
        varied: dict[str, float],
        seed: int,
    ) -> RunPlan:
        pipeline = self.config.pipelines[block.pipeline]
        loss = self.config.loss_of(block.pipeline).model_copy(
            update={name: varied[name] for name in ("temperature", "alpha") if name in varied}
        )
        inputs, named = self.student(student)
        for one, data in lessons:
            dataset = self.artifacts.dataset(data.name, data.labelled)
            inputs |= {one.role("dataset"): dataset, **self.lesson(pipeline, loss, one, data)}
        first = next(iter(block.taught_by), None)
        judging = self.artifacts.first_of_chain(first) if first else None
        if pipeline.data == "corpus":
            named |= lessons[0][1].filtered()
        if pipeline.logits and block.teachers:
            named["teachers"] = list(block.teachers.values())
        if pipeline.on_policy:
            beside, pretrained = self.artifacts.teacher(_needed(first))
            inputs |= beside
            named |= {**pretrained, "on_policy": pipeline.on_policy.identity()}
        terms = loss.terms(inputs.keys() | named.keys())
        if terms:
            named["loss"] = terms
        recipe = make_recipe(
            "student",
            inputs={role: {"kind": p.kind, "key": p.key} for role, p in inputs.items()},
            splits=splits_of(pipeline.data),
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
            scores=self.evaluations.scores(learnt[0], judging) if judging else None,
            judged=self.evaluations.judgements(judging) if judging else {},
        )

    def student(self, name: str) -> tuple[dict[str, ArtifactPlan], dict[str, Any]]:
        """What a student begins with: artifacts by role, and what its recipe says besides."""
        student = self.config.students[name]
        named: dict[str, Any] = {"init": self.artifacts.init(name)}
        lender = self.config.teachers.get(student.tokenizer_of or "")
        if isinstance(lender, PretrainedTeacher):
            named["tokenizer_of"] = self.artifacts.fingerprints.model(lender.model, lender.revision)
        if student.lora is not None:
            named["lora"] = student.lora.identity()
        if student.tokenizer is None:
            return {}, named
        return {"tokenizer": self.artifacts.tokenizer(student.tokenizer)}, named

    def lesson(
        self, pipeline: PipelineSettings, loss: LossSettings, lesson: Lesson, data: RowsAndAnswers
    ) -> dict[str, ArtifactPlan]:
        """What a run reads of a teacher's work on one dataset, by role."""
        inputs: dict[str, ArtifactPlan] = {}
        first = next(iter(lesson.teachers), None)
        if pipeline.data == "corpus":
            inputs[lesson.role("corpus")] = self.artifacts.corpus(data, _needed(first))
        for name, role in lesson.caches.items() if pipeline.logits else ():
            inputs[role] = self.artifacts.logits(data, name, pipeline.data, _needed(first))
            if loss.by_rank and (read_with := self.artifacts.read_with(name)):
                inputs[reading_role(role)] = read_with
        for role, name in pipeline.states.items():
            inputs[role] = self.artifacts.states(data, _needed(first), pipeline.data, name)
        return inputs


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _needed(teacher: str | None) -> str:
    """The teacher's name; the configuration was checked to have one where it is needed."""
    if teacher is None:
        raise TypeError("a pipeline that reads teacher artifacts has no teacher")
    return teacher
