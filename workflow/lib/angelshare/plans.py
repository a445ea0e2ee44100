"""What a study is made of: artifacts and student runs, each with recipe and key, and their bills.

`angelshare.grid` finds them from a configuration; everything else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from angelshare.evaluation.judges.settings import JudgedSettings
from angelshare.recipes import Recipe
from angelshare.settings import Settings
from angelshare.student.settings import LossSettings, TrainingSettings

if TYPE_CHECKING:
    from angelshare.energy.windows import Role


class Work(NamedTuple):
    """What makes an artifact."""

    rule: str
    """The rule of its parts."""
    stage: str
    """In the sidecar's words."""
    role: Role
    """Likewise."""


WORK = {
    "dataset": Work("prepare_dataset", "preprocess", "preprocess"),
    "tokenizer": Work("train_tokenizer", "preprocess", "preprocess"),
    "model": Work("demo_teacher", "demo_teacher", "teacher"),
    "logits": Work("capture_logits", "teacher_logits", "teacher"),
    "states": Work("capture_states", "teacher_hidden", "teacher"),
    "corpus": Work("generate_corpus", "teacher_generation", "teacher"),
    "scores": Work("evaluate_teacher", "teacher_evaluate", "teacher"),
    "answers": Work("answer_teacher", "teacher_evaluate", "teacher"),
    "judgements": Work("judge_teacher", "judge", "teacher"),
}
"""By the kind of the artifact."""
ASSISTANT = Work("train_assistant", "assistant_train", "teacher")
"""A model that is trained as a student is. Runs pay for it, unlike for the embedded teacher."""


def work_of(recipe: Recipe) -> Work:
    """What makes the artifact that a recipe decides."""
    assistant = recipe["kind"] == "model" and "student" in recipe
    return ASSISTANT if assistant else WORK[recipe["kind"]]


TEACHER_ROLES = frozenset({"corpus", "logits", "features", "relations"})
"""The roles in which a run reads a teacher's work."""


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

    @property
    def work(self) -> Work:
        """What makes it."""
        return work_of(self.recipe)

    @property
    def assistant(self) -> bool:
        """Whether it is a model that was trained as a student, to teach others."""
        return self.work is ASSISTANT

    def closure(self) -> Iterator[ArtifactPlan]:
        """This artifact and everything it is made from, inputs first, each once."""
        seen: dict[str, ArtifactPlan] = {}
        for upstream in self.inputs.values():
            seen.update((plan.key, plan) for plan in upstream.closure())
        yield from seen.values()
        yield self


@dataclass(frozen=True, slots=True)
class Lesson:
    """A dataset that a run learns from, and whose work on it."""

    dataset: str
    """A name of the configuration."""
    teachers: dict[str, float]
    """With the weights of their distributions."""
    number: int = 1
    """Among the run's lessons; of several, each has one teacher."""

    def role(self, kind: str) -> str:
        """The role of its artifact of this kind: ``corpus``, in the second lesson ``corpus_2``."""
        return _numbered(kind, self.number)

    @property
    def caches(self) -> dict[str, str]:
        """The role of each teacher's logit cache: ``logits``, then ``logits_2`` and so on."""
        roles = enumerate(self.teachers, start=self.number)
        return {name: _numbered("logits", number) for number, name in roles}

    @property
    def roles(self) -> set[str]:
        """Every role that is its own."""
        caches = [*self.caches.values()]
        own = [self.role(kind) for kind in ("dataset", "corpus", "features", "relations")]
        return {*own, *caches, *map(reading_role, caches)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A student run."""

    name: str
    key: str
    recipe: Recipe
    pipeline: str
    student: str
    lessons: tuple[Lesson, ...]
    """What it learns from, or is compared with. The first one's test split is what it is scored on,
    and the first teacher's scores count."""
    seed: int
    hyperparameters: dict[str, float]
    """What the grid varies for this run besides its names and seed."""
    training: TrainingSettings
    loss: LossSettings
    inputs: dict[str, ArtifactPlan]
    """The artifacts it reads, by role: ``dataset``, ``tokenizer`` and ``TEACHER_ROLES``; of further
    teachers or lessons ``logits_2`` and so on. A loss by rank also reads the tokenizers of its
    caches (``teacher_tokenizer``); ``teacher`` is a model to be loaded beside the student."""
    compared_with_teacher: str | None
    """Whose scores its quality is relative to: its teacher, or the first of its teacher's chain."""
    scores: ArtifactPlan | None
    """That teacher's own scores; None where there is no teacher, or all of them are cited."""
    judged: dict[str, ArtifactPlan]
    """The judgements of that teacher's own answers, by benchmark; none that are cited."""
    quantised: str | None = None
    """The precision in which its model is scored; None: that of its weights."""
    trained_as: str | None = None
    """The run whose model this one scores, where it has no training of its own."""

    @property
    def trained_name(self) -> str:
        """The name under which its model is trained."""
        return self.trained_as or self.name

    @property
    def shown_as(self) -> str:
        """The student, with its precision where that is not the one of its weights."""
        return f"{self.student} {self.quantised}" if self.quantised else self.student

    @property
    def dataset(self) -> str:
        """The datasets it learns from, for people and for tables."""
        return "+".join(lesson.dataset for lesson in self.lessons)

    @property
    def teachers(self) -> dict[str, float]:
        """The teachers of all lessons with their weights there, the first first."""
        return {name: weight for one in self.lessons for name, weight in one.teachers.items()}

    @property
    def taught_by(self) -> str | None:
        """The teachers it learns from, for people; None where it learns from none."""
        if not self.distilled:
            return None
        if len(self.lessons) > 1:
            pairs = ((name, one.dataset) for one in self.lessons for name in one.teachers)
            return " + ".join(f"{name} on {dataset}" for name, dataset in pairs)
        mixed = (f"{weight:g} {name}" for name, weight in self.teachers.items())
        return " + ".join(mixed) if len(self.teachers) > 1 else next(iter(self.teachers))

    @property
    def distilled(self) -> bool:
        """Whether the run learns from a teacher's work."""
        return self.on_policy or bool(TEACHER_ROLES & self.inputs.keys())

    @property
    def on_policy(self) -> bool:
        """Whether its teacher lies in memory while it is trained, for this run alone."""
        return "on_policy" in self.recipe

    def upstream(self) -> list[ArtifactPlan]:
        """Every artifact its training stands on, directly or not, inputs first."""
        found = {p.key: p for plan in self.inputs.values() for p in plan.closure()}
        return list(found.values())

    def shares_of(self, tokens: Sequence[float]) -> list[tuple[ArtifactPlan, float]]:
        """Every artifact its training stands on, and the share of its tokens that come from it.

        ``tokens`` are the shares of the lessons; they sum to 1.
        """
        found: dict[str, float] = {}
        for lesson, share in zip(self.lessons, tokens, strict=True):
            others = {role for one in self.lessons if one != lesson for role in one.roles}
            read = [plan for role, plan in self.inputs.items() if role not in others]
            for key in {p.key for plan in read for p in plan.closure()}:
                found[key] = found.get(key, 0.0) + share
        return [(plan, min(1.0, found[plan.key])) for plan in self.upstream()]

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
    assistants: dict[str, RunPlan] = field(default_factory=dict)
    """By the key of their model: how each assistant among the artifacts is trained."""
    evaluation: Recipe = field(default_factory=dict)
    """What decides a score besides the model and the dataset."""
    judged: dict[str, Judged] = field(default_factory=dict)
    """By benchmark."""

    @property
    def trainings(self) -> dict[str, RunPlan]:
        """The runs that are trained: all but those that score another one's model."""
        return {name: run for name, run in self.runs.items() if run.trained_as is None}

    def with_several_teachers(self) -> set[str]:
        """The pipelines whose runs differ in their teachers: no repeats of one setting."""
        teachers: dict[str, set[str | None]] = {}
        for run in self.runs.values():
            teachers.setdefault(run.pipeline, set()).add(run.taught_by)
        return {pipeline for pipeline, names in teachers.items() if len(names) > 1}

    @property
    def datasets(self) -> dict[str, ArtifactPlan]:
        """The dataset of each name; of several variants, the one with the most labelled rows."""
        found: dict[str, ArtifactPlan] = {}
        lessons = ((run, lesson) for run in self.runs.values() for lesson in run.lessons)
        for run, lesson in lessons:
            plan, known = run.inputs[lesson.role("dataset")], found.get(lesson.dataset)
            if known is None or _labelled(plan) > _labelled(known):
                found[lesson.dataset] = plan
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


def _numbered(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}_{number}"


def reading_role(cache: str) -> str:
    """The role of the tokenizer that a cache of the role ``cache`` was read with."""
    return cache.replace("logits", "teacher_tokenizer")


def _labelled(plan: ArtifactPlan) -> float:
    count = plan.recipe["source"]["labelled"]
    return math.inf if count is None else float(count)
