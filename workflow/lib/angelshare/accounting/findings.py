"""Findings in words, generated from the tables, so that what is said is what was computed.

`headlines` are the three lines a user reads first; `findings` is the longer list of the report,
ending in what the data do not support.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import polars as pl

from angelshare.accounting.attempts import WASTED
from angelshare.accounting.break_even import AT_ONCE, FINITE, NEVER, UNBOUNDED
from angelshare.accounting.dominance import SURE
from angelshare.accounting.names import VIEW_NAMES, pretty, stage_name
from angelshare.accounting.order import ordered_settings, students_by_size
from angelshare.accounting.summary import FEW
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.accounting.units import energy, number

_MOST_NAMED = 8
_MOST_WASTING = 4
_CLOSE = 1.05
"""Energies that differ by less than this factor are called the same."""


class Finding(NamedTuple):
    """A sentence of the report and what it is about."""

    topic: str
    text: str


def headlines(tables: Tables) -> tuple[str, str, str]:
    """The frontier under each view, every pipeline's N*, and what was reused, one line each."""
    return (
        f"Frontier: {_frontier_line(tables)}",
        f"Break-even: {_break_even_line(tables)}",
        f"Reuse: {_reuse_line(tables)}",
    )


def findings(tables: Tables) -> list[Finding]:
    """Everything the report says in words, most important first."""
    found = [
        Finding("frontier", _capital(_frontier_line(tables))),
        Finding("break-even", _capital(_break_even_line(tables))),
        Finding("reuse", _capital(_reuse_line(tables))),
    ]
    makers = (_unshared, _flips, _dominant, _dominated, _moved, _largest_stage, _wasted, _planned)
    for make in (*makers, _unsupported):
        found.extend(Finding(*pair) for pair in make(tables))
    return found


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _frontier_line(tables: Tables) -> str:
    if not tables.frontier.height:
        return "no run has a score on every benchmark, so there is no frontier."
    parts = []
    for view in VIEWS:
        members = tables.frontier.filter((pl.col("view") == view) & pl.col("on_frontier"))
        names = [_with_probability(row) for row in members.sort("energy_j").rows(named=True)]
        parts.append(f"{VIEW_NAMES[view]}: {', '.join(names)}")
    return f"{'; '.join(parts)}."


def _with_probability(row: dict[str, Any]) -> str:
    probability = row["membership_probability"]
    if probability is None or probability >= SURE:
        return pretty(row["setting"])
    return f"{pretty(row['setting'])} ({chance(probability)})"


def chance(probability: float) -> str:
    """A probability that was counted in draws, which never show a certainty."""
    return percent(min(max(probability, 1e-9), 1 - 1e-9))


def percent(share: float) -> str:
    """A share in whole per cent, never rounded to a whole it is not."""
    if 0 < share < 0.005:
        return "< 1 %"
    if 0.995 <= share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def _break_even_line(tables: Tables) -> str:
    if not tables.break_even.height:
        return "no distilled run."
    order = ordered_settings(tables)
    rows = sorted(tables.break_even.rows(named=True), key=lambda row: order.index(row["setting"]))
    texts = [break_even_text(row) for row in rows]
    return f"{'; '.join(texts)}."


def break_even_text(row: dict[str, Any]) -> str:
    """One row in words: `kd 1B N* 10.0 (95 % 8.10 to 13.0; 3 consumers, not reached)`."""
    name = pretty(row["setting"])
    if row["n_star_status"] == NEVER:
        at_best = row["n_star_low"]
        hope = f" (95 %: at best {number(at_best)})" if at_best is not None else ""
        return f"{name} N* never: the distilled student is not cheaper to train{hope}"
    if row["n_star"] is None:
        return f"{name} not known: {row['note']}"
    told = [f"{row['consumers']} consumers, {'reached' if row['reached'] else 'not reached'}"]
    if row["n_star_low"] is not None and row["n_star_status"] == FINITE:
        told.insert(0, f"95 % {number(row['n_star_low'])} to {number(row['n_star_high'])}")
    elif row["n_star_low"] is not None and row["n_star_status"] == UNBOUNDED:
        told.insert(0, f"95 % {number(row['n_star_low'])} to never")
    else:
        told.insert(0, "no interval, spread not known")
    return f"{name} N* {number(row['n_star'])} ({'; '.join(told)})"


def _reuse_line(tables: Tables) -> str:
    teacher = tables.artifacts.filter("teacher")
    if not teacher.height:
        return "no teacher artifact."
    shares = tables.shares.join(teacher.select("kind", "key"), on=["kind", "key"])
    ours = shares.filter("ours")["run"].n_unique()
    others = shares.filter(~pl.col("ours")).select("team", "run").n_unique() if shares.height else 0
    reused = teacher.filter(pl.col("consumers") > 1)
    said = (
        f"{reused.height} of {_many(teacher.height, 'teacher artifact')} served more than one run "
        f"({_many(ours, 'run')} of this study, {others} of others)"
    )
    saved_j = float(reused["saved_j"].sum())
    return (
        f"{said}; {energy(float(teacher['energy_j'].sum()))} of teacher work, and "
        f"{energy(saved_j)} not spent that making it once per run would have cost."
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _unshared(tables: Tables) -> list[tuple[str, str]]:
    """What teachers in memory spend within a run's training: no other run can have its use."""
    online = tables.runs.filter(pl.col("teacher_online_j").is_not_null())
    means = online.group_by("setting", maintain_order=True).agg(
        pl.col("teacher_online_j", "student_only_j").mean()
    )
    texts = [
        f"{pretty(setting)} {energy(online_j)} a run ({percent(online_j / own_j)} of its own jobs)"
        for setting, online_j, own_j in means.rows()
    ]
    if not texts:
        return []
    text = f"A teacher in memory works for one run alone, under every view: {'; '.join(texts)}."
    return [("reuse", text)]


def _names(settings: list[str]) -> str:
    named = ", ".join(pretty(setting) for setting in settings[:_MOST_NAMED])
    more = len(settings) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _flips(tables: Tables) -> list[tuple[str, str]]:
    """Settings that are on the frontier under one view and not under another."""
    on = {
        view: set(
            tables.frontier.filter((pl.col("view") == view) & pl.col("on_frontier"))["setting"]
        )
        for view in VIEWS
    }
    found = []
    if lost := sorted(on["student_only"] - on["one_off"]):
        kept = [setting for setting in lost if setting in on["amortized"]]
        text = f"On the frontier only while the teacher is not counted: {_names(lost)}."
        if kept:
            text += f" Shared among the actual consumers, back on it: {_names(kept)}."
        found.append(("views", text))
    if gained := sorted(on["one_off"] - on["student_only"]):
        text = f"On the frontier once the teacher is counted, and not before: {_names(gained)}."
        found.append(("views", text))
    if tables.frontier.height and not found:
        found.append(("views", "The frontier is the same whether the teacher is counted or not."))
    return [*found, *_cheapest_flips(tables)]


def _cheapest_flips(tables: Tables) -> list[tuple[str, str]]:
    """Students whose cheapest setting depends on the view."""
    found = []
    for student in students_by_size(tables):
        group = tables.summary.filter(pl.col("student") == student)
        cheapest = {view: group.sort(f"{view}_j", "setting")["setting"][0] for view in VIEWS}
        if len(set(cheapest.values())) > 1:
            said = ", ".join(f"{VIEW_NAMES[v]} {pretty(cheapest[v])}" for v in VIEWS)
            found.append(("views", f"The cheapest for student {student} depends on it: {said}."))
    return found


def _moved(tables: Tables) -> list[tuple[str, str]]:
    """What a shift of the phases' boundaries changes."""
    if not tables.sensitivity.height:
        return []
    changed = tables.sensitivity.filter("changes")
    if not changed.height:
        text = "Moving any boundary between phases by 5 % changes no conclusion."
        return [("boundaries", text)]
    texts = [
        f"{pretty(row['conclusion'])} becomes {pretty(row['after'])} (was {pretty(row['before'])}; "
        f"{row['boundary']}, {100 * row['shift']:+.0f} %)"
        for row in changed.unique("conclusion", keep="first", maintain_order=True).rows(named=True)
    ]
    more = f"; and {len(texts) - 4} more" if len(texts) > 4 else ""
    return [("boundaries", f"With a boundary moved by 5 %: {'; '.join(texts[:4])}{more}.")]


def _planned(tables: Tables) -> list[tuple[str, str]]:
    """How good the predictions were."""
    known = tables.predictions
    if not known.height:
        return []
    inside = int(known["covered"].sum())
    text = (
        f"Planned {energy(float(known['predicted_j'].sum()))}, measured "
        f"{energy(float(known['measured_j'].sum()))}: {inside} of {_many(known.height, 'job')} lay "
        "within their 95 % interval."
    )
    return [("plan", text)]


def _dominant(tables: Tables) -> list[tuple[str, str]]:
    """The cheapest pipeline of each student under each view."""
    found = []
    for student in students_by_size(tables):
        group = tables.summary.filter(pl.col("student") == student)
        if group["pipeline"].n_unique() < 2:
            continue
        parts = []
        for view in VIEWS:
            ranked = group.sort(f"{view}_j", "setting")
            low, high = ranked.row(0, named=True), ranked.row(-1, named=True)
            factor = high[f"{view}_j"] / low[f"{view}_j"] if low[f"{view}_j"] else float("inf")
            if factor < _CLOSE:
                parts.append(f"{VIEW_NAMES[view]} all cost the same within {percent(factor - 1)}")
                continue
            parts.append(
                f"{VIEW_NAMES[view]} {pretty(low['setting'])} costs least and "
                f"{pretty(high['setting'])} most ({number(factor, 2)} times)"
            )
        found.append(("energy", f"Student {student}: {'; '.join(parts)}."))
    return found


def _dominated(tables: Tables) -> list[tuple[str, str]]:
    """Settings that waste energy: by whom, how surely and how much when amortised, largest first;
    and which of them do so under every view."""
    beaten = tables.frontier.filter(pl.col("sure_dominator").is_not_null())
    amortized = beaten.filter(pl.col("view") == "amortized").sort(
        "wasted_j", "setting", descending=[True, False]
    )
    found = []
    if amortized.height:
        texts = [waste_text(row) for row in amortized.head(_MOST_WASTING).rows(named=True)]
        rest = amortized.height - len(texts)
        more = f"; and {_many(rest, 'setting')} more" if rest > 0 else ""
        found.append(f"Dominated when amortised: {'; '.join(texts)}{more}.")
    views = dict(beaten.group_by("setting").agg(pl.col("view").n_unique()).rows())
    if always := sorted(setting for setting, count in views.items() if count == len(VIEWS)):
        found.append(f"Dominated under every view: {_names(always)}.")
    return [("waste", text) for text in found]


def waste_text(row: dict[str, Any]) -> str:
    """A row of `frontier` that has a sure dominator, in words."""
    known = []
    if row["wasted_low_j"] is not None:
        known.append(f"95 % {energy(row['wasted_low_j'])} to {energy(row['wasted_high_j'])}")
    if row["sure_probability"] is not None:
        known.append(f"{chance(row['sure_probability'])} sure")
    how_sure = f" ({'; '.join(known)})" if known else ""
    return (
        f"{pretty(row['setting'])} wastes {energy(row['wasted_j'])} a run beside "
        f"{pretty(row['sure_dominator'])}, which is no worse{how_sure}"
    )


def _largest_stage(tables: Tables) -> list[tuple[str, str]]:
    """The stage with most of the energy of everything that stands in the tables."""
    stages = (
        tables.attempts.group_by("stage")
        .agg(pl.col("energy_j").sum())
        .sort("energy_j", descending=True)
    )
    total_j = float(stages["energy_j"].sum())
    if not total_j:
        return []
    stage, most_j = stages.row(0)
    text = (
        f"Most energy goes into {stage_name(stage)}: {energy(most_j)}, "
        f"{percent(most_j / total_j)} of all {energy(total_j)}."
    )
    return [("stages", text)]


def _wasted(tables: Tables) -> list[tuple[str, str]]:
    lost = tables.attempts.filter(pl.col("status").is_in(WASTED))
    if not lost.height:
        return [("attempts", "No failed attempt is on record.")]
    total_j = float(tables.attempts["energy_j"].sum())
    lost_j = float(lost["energy_j"].sum())
    return [
        (
            "attempts",
            f"{_many(lost.height, 'attempt')} failed or stopped early and cost {energy(lost_j)} "
            f"({percent(lost_j / total_j if total_j else 0.0)} of all), which is on the bills.",
        )
    ]


def _unsupported(tables: Tables) -> list[tuple[str, str]]:
    """What the data do not carry: few repeats, open memberships, missing meters and scores."""
    found = []
    few = tables.summary.filter(pl.col("n") < FEW)
    if few.height:
        found.append(
            f"{few.height} of {_many(tables.summary.height, 'setting')} "
            f"{'has' if few.height == 1 else 'have'} fewer than {FEW} runs: intervals are wide or "
            "missing."
        )
    probability = pl.col("membership_probability")
    unsure = tables.frontier.filter(probability.is_between(1 - SURE, SURE))
    if unsure.height:
        names = sorted(set(unsure["setting"]))
        found.append(f"Whether these are on a frontier is open: {_names(names)}.")
    total_j, measured_j = _measured(tables)
    if measured_j is None:
        found.append("No record says how much of the energy was measured.")
    elif total_j and measured_j == 0:
        found.append(
            "None of the energy was measured, all of it is estimated: absolute joules are rough, "
            "comparisons on one machine less so."
        )
    elif total_j and measured_j < 0.5 * total_j:
        found.append(
            f"Only {percent(measured_j / total_j)} of the energy was measured; the rest is "
            "estimated, so absolute joules are rough, and comparisons on one machine less so."
        )
    missing = {part for text in tables.attempts["missing"] if text for part in text.split(", ")}
    if missing:
        found.append(f"Missing from some totals: {', '.join(sorted(missing))}.")
    if tables.summary["datasets"].n_unique() > 1:
        found.append(
            "Not all settings ran on the same datasets: means over different datasets do not "
            "compare, and neither do their places on the frontier."
        )
    unscored = tables.runs.filter(pl.col("quality").is_null())
    if unscored.height:
        found.append(f"{_many(unscored.height, 'run')} without quality, not on any frontier.")
    return [("not supported", text) for text in found]


def _measured(tables: Tables) -> tuple[float, float | None]:
    known = tables.attempts.filter(pl.col("measured_j").is_not_null())
    if not known.height:
        return 0.0, None
    return float(known["energy_j"].sum()), float(known["measured_j"].sum())


def t_star_text(row: dict[str, Any]) -> str:
    """T* of one row of `break_even` in words."""
    if row["t_star_tokens"] is None:
        return row["t_star_status"]
    if row["t_star_status"] == AT_ONCE:
        return AT_ONCE
    text = f"{number(row['t_star_tokens'] / 1e6)} million tokens"
    if row["t_star_low"] is None:
        return text
    low, high = row["t_star_low"] / 1e6, row["t_star_high"]
    return f"{text} (95 %: {number(low)} to {NEVER if high is None else number(high / 1e6)})"
