"""A plan in words: the lines of every start and dry run, and the refusal where it is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from angelshare.accounting.names import stage_name
from angelshare.accounting.units import J_PER_KWH, energy, number
from angelshare.planning.plan import Plan
from angelshare.planning.predict import Prediction
from angelshare.planning.ranges import Range, common_sum

ACTIONS = {
    "fetch": "to fetch",
    "prepare": "to prepare",
    "generate": "to generate",
    "train": "to train",
    "evaluate": "to evaluate",
}


def block(plan: Plan) -> list[str]:
    """The plan in about ten lines."""
    lines = [f"Plan: {_reused(plan)}; {_todo(plan)}."]
    if plan.downloads:
        lines.append(f"  to fetch from the hub: {', '.join(plan.downloads)}")
    for (action, stage, basis), found in plan.by_stage():
        what = f"{ACTIONS[action]}: {_count(len(found), 'job')}, {stage_name(stage)}"
        lines.append(f"  {what}: {_cost(found)} [{basis}: {_fits(found)}]")
    if plan.predictions:
        lines.append(f"  in all {totals(plan)}")
        lines.append(f"  for {plan.hardware} ({plan.hardware_basis}); 95 % intervals")
    if plan.unknown:
        named = sorted({one.item.label for one in plan.unknown})
        lines.append(f"  not in the sum, because {plan.unknown[0].fit}: {', '.join(named[:4])}")
    if plan.budget_j is not None:
        lines.append(
            f"  budget {energy(plan.budget_j)}, spent so far {energy(plan.spent_j)}"
            + (": REFUSED, it does not fit" if plan.exceeds else "")
        )
    return lines


def refusal(plan: Plan) -> str:
    """Why a plan is refused, and what to do."""
    assert plan.budget_j is not None
    return (
        f"the plan does not fit into the budget: {interval(plan.energy_j)} expected, and "
        f"{energy(plan.spent_j)} spent already, of {plan.budget_j / J_PER_KWH:.4g} kWh. Nothing "
        "was started. Raise budget.kwh, make the grid smaller, or ask `angelshare advise`"
    )


def totals(plan: Plan) -> str:
    """Energy, carbon, money and time of the whole plan, as intervals."""
    parts = [interval(plan.energy_j)]
    grams = plan.co2e_g()
    unit, factor = ("kg", 1e3) if grams.value >= 1e3 else ("g", 1.0)
    parts.append(f"{ranged(grams, factor)} {unit} CO2e")
    cost = plan.cost()
    parts.append(
        "cost not known (carbon.price_per_kwh is not set)"
        if cost is None
        else f"{ranged(cost)} {plan.carbon.currency}"
    )
    parts.append(f"{duration(plan.duration_s)} of jobs one after the other")
    return "; ".join(parts)


def interval(range_j: Range) -> str:
    """`1.20 kWh (0.90 to 1.60)`: an energy with its bounds in the value's unit."""
    value, unit = energy(range_j.value).rsplit(" ", 1)
    factor = range_j.value / float(value.replace(",", "")) if range_j.value else 1.0
    return f"{value} {unit} ({number(range_j.low / factor)} to {number(range_j.high / factor)})"


def ranged(figure: Range, factor: float = 1.0) -> str:
    """A figure with its bounds."""
    value, low, high = (number(one / factor) for one in figure)
    return f"{value} ({low} to {high})"


def duration(range_s: Range) -> str:
    """Seconds as hours, minutes or seconds, with bounds."""
    unit, factor = "s", 1.0
    if range_s.value >= 2 * 3600:
        unit, factor = "h", 3600.0
    elif range_s.value >= 120:
        unit, factor = "min", 60.0
    return f"{ranged(range_s, factor)} {unit}"


def _reused(plan: Plan) -> str:
    layers = Counter(one.layer for one in plan.reused)
    here = layers.pop(None, 0)
    said = f"{_count(here, 'artifact')} reused"
    for layer, count in sorted(layers.items(), key=lambda pair: str(pair[0])):
        said += f", {count} from {layer}"
    return said


def _todo(plan: Plan) -> str:
    counts = Counter(one.item.action for one in plan.predictions)
    parts = [f"{count} {ACTIONS[name]}" for name, count in sorted(counts.items())]
    return ", ".join(parts) if parts else "nothing is to be made"


def _cost(found: Iterable[Prediction]) -> str:
    known = [one for one in found if one.energy_j is not None]
    if not known:
        return "not known"
    energy_j = common_sum(one.energy_j for one in known if one.energy_j is not None)
    seconds = common_sum(one.duration_s for one in known if one.duration_s is not None)
    return f"{interval(energy_j)}, {duration(seconds)}"


def _fits(found: list[Prediction]) -> str:
    fits = list(dict.fromkeys(one.fit for one in found))
    return fits[0] if len(fits) == 1 else f"{fits[0]} and {len(fits) - 1} more"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
