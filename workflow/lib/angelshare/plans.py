"""What a study is made of: artifacts and student runs, each with recipe and key, and their bills.

`angelshare.grid` finds them from a configuration; everything else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
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
    """The artifacts it reads, by role: ``dataset``, ``tokenizer`` and ``TEACHER_ROLES``."""
    scores: ArtifactPlan | None
    """The teacher's own scores, which say what its quality is relative to."""
    judged: dict[str, ArtifactPlan]
    """The judgements of the teacher's own answers, by benchmark."""

    @property
    def distilled(self) -> bool:
        """Whether the run learns from a teacher's work."""
        return bool(TEACHER_ROLES & self.inputs.keys())

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
