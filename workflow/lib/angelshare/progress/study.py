"""The tasks of a study and the state of each, from what lies on disk: no job has to report.

A task is one job that makes something: a part of a shared artifact, a student, its scores. It is
done when its product is there; reused when this checkout has no log of having made it. It is
running while an attempt's process lives, failed when its last attempt ended without the product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from angelshare.accounting.units import J_PER_KWH, energy
from angelshare.config import Config
from angelshare.plans import Study
from angelshare.progress.attempts import Attempt, Attempts
from angelshare.store.artifacts import ArtifactStore

State = Literal["done", "reused", "running", "failed", "waiting"]
STATES: tuple[State, ...] = ("done", "reused", "running", "failed", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One job that makes something."""

    rule: str
    label: str
    """What it makes, for people."""
    log: Path
    state: State
    attempts: tuple[Attempt, ...]
    """Every try so far, by start."""

    @property
    def name(self) -> str:
        """Rule and label."""
        return f"{self.rule} {self.label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A whole study at one moment."""

    tasks: tuple[Task, ...]
    others_j: float
    """Joules of attempts that belong to no task: sealing, accounting, the report, the prerun."""
    budget_j: float | None = None

    def count(self, state: State, rules: frozenset[str] | None = None) -> int:
        """How many tasks are in this state, of all or of some rules."""
        return sum(t.state == state and (rules is None or t.rule in rules) for t in self.tasks)

    @property
    def finished(self) -> int:
        """Tasks with a product."""
        return self.count("done") + self.count("reused")

    @property
    def energy_j(self) -> float:
        """Joules of every attempt so far, also on artifacts that others paid for."""
        return self.others_j + sum(a.energy_j for t in self.tasks for a in t.attempts)

    @property
    def lost_j(self) -> float:
        """Joules of attempts that ended without a product."""
        ended = (a for t in self.tasks for a in t.attempts if a.status not in ("ok", "running"))
        return sum(a.energy_j for a in ended)

    def left_s(self) -> tuple[float, bool]:
        """Seconds of work left at the present number of jobs at once, and whether that is all.

        A job takes as long as the finished ones of its rule took on average; for rules without
        any, the figure is a lower bound.
        """
        durations: dict[str, list[float]] = defaultdict(list)
        for task in self.tasks:
            if task.state in ("done", "reused"):
                durations[task.rule] += [a.duration_s for a in task.attempts if a.status == "ok"][
                    :1
                ]
        left_s, known = 0.0, True
        for task in self.tasks:
            if task.state in ("done", "reused"):
                continue
            if not durations[task.rule]:
                known = False
                continue
            spent_s = task.attempts[-1].duration_s if task.state == "running" else 0.0
            left_s += max(0.0, fmean(durations[task.rule]) - spent_s)
        return left_s / max(1, self.count("running")), known

    def summary(self) -> str:
        """One line: how many of how many, and what it cost."""
        counts = f"{self.finished} of {len(self.tasks)} done"
        if self.count("reused"):
            counts += f" ({self.count('reused')} reused)"
        counts += f", {self.count('running')} running"
        if self.count("failed"):
            counts += f", {self.count('failed')} failed"
        return f"{counts}; {self.spending()}{self._time_left()}"

    def spending(self) -> str:
        """The energy so far, its share of the budget, and what was lost."""
        text = energy(self.energy_j)
        if self.budget_j:
            share = self.energy_j / self.budget_j
            text += f" of {energy(self.budget_j)} ({share:.0%})"
        if self.lost_j:
            text += f", {energy(self.lost_j)} of it in attempts that failed"
        return text

    def _time_left(self) -> str:
        seconds, known = self.left_s()
        if self.finished == len(self.tasks):
            return ""
        if not seconds:
            return ""
        return f"; {'about' if known else 'more than'} {time_text(seconds)} left"


@dataclass(slots=True)
class Reader:
    """Reads the progress of one study, again and again."""

    config: Config
    study: Study
    store: ArtifactStore
    logs: Path = Path("logs")
    _attempts: Attempts = field(default_factory=Attempts)

    def read(self) -> Progress:
        """The study now."""
        others: list[Attempt] = []
        tasks = [*self._artifact_tasks(others), *self._run_tasks()]
        results, kwh = Path(self.config.results), self.config.budget.kwh
        for name in (
            "prerun/energy.attempts",
            "accounting/energy.attempts",
            "report.energy.attempts",
        ):
            others += self._attempts.read([results / name])
        return Progress(
            tasks=tuple(tasks),
            others_j=sum(attempt.energy_j for attempt in others),
            budget_j=None if kwh is None else kwh * J_PER_KWH,
        )

    def _artifact_tasks(self, others: list[Attempt]) -> Iterator[Task]:
        for plan in self.study.artifacts.values():
            artifact = self.store.artifact(plan.kind, plan.key)
            by_part: dict[str, list[Attempt]] = defaultdict(list)
            for attempt in self._attempts.read([artifact.attempts]):
                if "part" in attempt.wildcards:
                    by_part[attempt.wildcards["part"]].append(attempt)
                else:
                    others.append(attempt)
            rule = plan.work.rule
            for number in range(plan.parts):
                part = f"{number:05d}"
                log = self.logs / rule / f"{plan.key}-{part}.log"
                made = artifact.receipt_path(number).exists()
                label = plan.label if plan.parts == 1 else f"{plan.label}, part {number}"
                yield _task(rule, label, log, made, by_part[part], reusable=True)

    def _run_tasks(self) -> Iterator[Task]:
        results = Path(self.config.results)
        for run, plan in self.study.runs.items():
            folder, scores = results / "students" / run, results / "scores"
            if plan.trained_as is None:
                log = self.logs / "train_student" / f"{run}.log"
                attempts = self._attempts.read([folder / "energy.attempts"])
                made = (folder / "training.json").exists()
                yield _task("train_student", run, log, made, attempts)
            log = self.logs / "evaluate_student" / f"{run}.log"
            attempts = self._attempts.read([scores / f"{run}.energy.attempts"])
            yield _task("evaluate_student", run, log, (scores / f"{run}.json").exists(), attempts)
            for rule, kind in (("answer_student", "answers"), ("judge_student", "judgements")):
                for benchmark in self.study.judged:
                    record = results / kind / benchmark / f"{run}.json"
                    attempts = self._attempts.read([record.with_suffix(".energy.attempts")])
                    log = self.logs / rule / f"{benchmark}-{run}.log"
                    yield _task(rule, f"{run} on {benchmark}", log, record.exists(), attempts)


def _task(
    rule: str, label: str, log: Path, made: bool, attempts: list[Attempt], reusable: bool = False
) -> Task:
    state: State
    if any(attempt.status == "running" for attempt in attempts):
        state = "running"
    elif made:
        state = "reused" if reusable and not log.exists() else "done"
    elif attempts:
        state = "failed"
    else:
        state = "waiting"
    return Task(rule=rule, label=label, log=log, state=state, attempts=tuple(attempts))


def time_text(seconds: float) -> str:
    """Seconds for people."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
