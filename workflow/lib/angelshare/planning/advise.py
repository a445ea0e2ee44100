"""Which pipeline, size and settings for this budget, quality target and expected reuse.

From the accounting tables where there are any: a setting's energy when N runs share its teacher's
work is what its students cost plus a Nth of the teacher's bill. Without tables, from a plan's
predictions, whose quality is not known and is said to be so. Joules; probabilities from Student's t
over the repeats, with the meter's bound and the benchmark's standard error in quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from angelshare.accounting.names import pretty
from angelshare.accounting.tables import Tables
from angelshare.accounting.units import energy, number
from angelshare.planning.plan import Plan
from angelshare.planning.ranges import Range, common_sum
from angelshare.plans import RunPlan, Study

Z95 = 1.96
LIKELY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting: what a run of it costs with N sharing, and what it scores."""

    setting: str
    energy_j: float
    energy_low_j: float | None
    energy_high_j: float | None
    first_j: float
    """What the first run pays before anyone shares."""
    quality: float | None
    within_budget: float | None
    """Probability that the energy is within the budget; None without a budget."""
    good_enough: float | None
    """Probability that the quality reaches the target; None where it is not known."""
    basis: str
    note: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Options from the best to the worst, and why the first is the answer (or why none is)."""

    answer: Option | None
    reason: str
    options: list[Option]


def advise(
    options: Sequence[Option], budget_j: float | None, quality: float | None, reuse: int
) -> Advice:
    """The cheapest setting that is likely to reach the target within the budget.

    Where the quality of every option is unknown, the cheapest, and the reason says that its
    quality is not known.
    """
    known = [one for one in options if one.quality is not None]
    pool = known or list(options)
    fitting = [one for one in pool if _passes(one.within_budget) and _passes(one.good_enough)]
    ranked = sorted(
        options,
        key=lambda one: (one not in fitting, one.energy_j, -(one.quality or 0.0), one.setting),
    )
    if not fitting:
        return Advice(None, _nothing(pool, budget_j, quality), ranked)
    answer = ranked[0]
    return Advice(answer, _because(answer, fitting, known, quality, reuse), ranked)


def _passes(probability: float | None) -> bool:
    return probability is None or probability >= LIKELY


def _because(
    answer: Option,
    fitting: Sequence[Option],
    known: Sequence[Option],
    quality: float | None,
    n: int,
) -> str:
    runs = "one run alone" if n == 1 else f"{n} runs sharing the teacher's work"
    said = [f"with {runs}, {pretty(answer.setting)} is the cheapest"]
    if answer.quality is None:
        said[0] += " of the study by prediction; its quality is not known before it is measured"
    elif quality is not None:
        said[0] += f" that is likely to reach {number(quality)}"
    rest = [one for one in fitting if one is not answer]
    if rest:
        second = min(rest, key=lambda one: one.energy_j)
        more = second.energy_j / answer.energy_j if answer.energy_j else math.inf
        said.append(f"next is {pretty(second.setting)} at {number(more)} times its energy")
    better = [one for one in known if (one.quality or 0) > (answer.quality or math.inf)]
    if better:
        best = max(better, key=lambda one: one.quality or 0)
        said.append(
            f"the best score is {pretty(best.setting)}'s, {number(best.quality or 0)}, for "
            f"{energy(best.energy_j)}"
        )
    return "; ".join(said)


def _nothing(pool: Sequence[Option], budget_j: float | None, quality: float | None) -> str:
    if not pool:
        return "there is no setting to choose from"
    enough = [one for one in pool if _passes(one.good_enough)]
    if not enough:
        best = max(pool, key=lambda one: one.quality or 0.0)
        return (
            f"no setting is likely to reach {number(quality or 0)}: the best, "
            f"{pretty(best.setting)}, has {number(best.quality or 0)}"
        )
    cheapest = min(enough, key=lambda one: one.energy_j)
    return (
        f"no setting fits into {energy(budget_j)} a run: the cheapest that will do, "
        f"{pretty(cheapest.setting)}, takes {energy(cheapest.energy_j)}"
    )


def measured_options(
    tables: Tables, budget_j: float | None, quality: float | None, reuse: int
) -> list[Option]:
    """One option per setting of the accounting tables."""
    return [
        _measured(row, budget_j, quality, reuse) for row in tables.summary.iter_rows(named=True)
    ]


def _measured(
    row: dict[str, Any], budget_j: float | None, quality: float | None, reuse: int
) -> Option:
    first_j, teacher_j = row["one_off_j"], row["teacher_j"] or 0.0
    energy_j = first_j - teacher_j + teacher_j / reuse
    repeat = _standard_error(row["one_off_j_sd"], row["n"])
    meter = (row["one_off_j_u95"] or 0.0) / 2.0 * (energy_j / first_j if first_j else 1.0)
    spread = math.hypot(repeat or 0.0, meter)
    known = repeat is not None or meter > 0
    half_j = stats.t.ppf(0.975, max(row["n"] - 1, 1)) * (repeat or 0.0)
    bound_j = math.hypot(half_j, 2.0 * meter)
    good = None
    if row["quality"] is not None and quality is not None:
        score = math.hypot(
            _standard_error(row["quality_sd"], row["n"]) or 0.0, row["quality_stderr"] or 0.0
        )
        good = _above(row["quality"] - quality, score, row["n"])
    return Option(
        setting=row["setting"],
        energy_j=energy_j,
        energy_low_j=max(0.0, energy_j - bound_j) if known else None,
        energy_high_j=energy_j + bound_j if known else None,
        first_j=first_j,
        quality=row["quality"],
        within_budget=None if budget_j is None else _above(budget_j - energy_j, spread, row["n"]),
        good_enough=good,
        basis="measured",
        note=row["note"] or "",
    )


def _standard_error(sd: float | None, n: int) -> float | None:
    return None if sd is None or n < 2 else sd / math.sqrt(n)


def _above(margin: float, spread: float, n: int) -> float:
    """The probability that a margin of this standard error is not negative."""
    if spread <= 0:
        return float(margin >= 0)
    return float(stats.t.cdf(margin / spread, max(n - 1, 1)))


def planned_options(plan: Plan, study: Study, budget_j: float | None, reuse: int) -> list[Option]:
    """One option per pipeline, student and hyperparameters, from the predictions of a plan that
    starts from nothing."""
    by_run: dict[str, list[Range]] = {}
    by_artifact: dict[tuple[str, str], list[Range]] = {}
    bases: dict[str, set[str]] = {}
    for one in plan.predictions:
        if one.energy_j is None:
            continue
        if one.item.run:
            by_run.setdefault(one.item.run, []).append(one.energy_j)
            bases.setdefault(one.item.run, set()).add(one.basis)
        elif one.item.artifact and one.item.stage != "demo_teacher":
            by_artifact.setdefault(one.item.artifact, []).append(one.energy_j)
    settings: dict[str, list[RunPlan]] = {}
    several = study.with_several_teachers()
    for run in study.runs.values():
        varied = " ".join(f"{name}={value:g}" for name, value in run.hyperparameters.items())
        if run.pipeline in several and run.taught_by:
            varied = f"{varied} teacher={run.taught_by}".strip()
        settings.setdefault(f"{run.pipeline} {run.student} {varied}".strip(), []).append(run)
    options = []
    for setting, runs in settings.items():
        complete = [run for run in runs if len(by_run.get(run.name, ())) == 2]
        if not complete:
            continue
        own = common_sum(common_sum(by_run[run.name]) for run in complete).scaled(1 / len(complete))
        shared = common_sum(
            one
            for run in complete[:1]
            for artifact in run.billed()
            for one in by_artifact.get((artifact.kind, artifact.key), ())
        )
        total = common_sum([own, shared.scaled(1 / reuse)])
        options.append(
            _planned(setting, total, own.value + shared.value, budget_j, bases, complete)
        )
    return options


def _planned(
    setting: str,
    total: Range,
    first_j: float,
    budget_j: float | None,
    bases: dict[str, set[str]],
    runs: Sequence[RunPlan],
) -> Option:
    within = None
    if budget_j is not None:
        end = total.high if budget_j >= total.value else total.low
        spread = abs(end - total.value) / Z95
        margin = budget_j - total.value
        within = float(stats.norm.cdf(margin / spread)) if spread else float(margin >= 0)
    used = sorted(set().union(*(bases[run.name] for run in runs)))
    return Option(
        setting=setting,
        energy_j=total.value,
        energy_low_j=total.low,
        energy_high_j=total.high,
        first_j=first_j,
        quality=None,
        within_budget=within,
        good_enough=None,
        basis=f"predicted ({', '.join(used)})",
        note="quality not known",
    )
