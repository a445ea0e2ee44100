"""Sums with their bounds: a record's total, its phases, and joules per token.

Bounds are expanded (k = 2). Errors of different devices are independent and add in quadrature;
estimates of one load model err together and add linearly. What is missing widens nothing, is
listed, and forbids the word "total".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

from angelshare.energy.curves import Measured, between
from angelshare.energy.measures import Component, Interval, Phase, Total
from angelshare.energy.sidecar import JoulesPerToken, Tokens, Warning
from angelshare.energy.trace import Trace

SHIFT = 0.05
TOKEN_MEANINGS = ("trained", "generated", "cached", "evaluated", "prompt")


def bounded(value: float, u95: float) -> Interval:
    """The value with its bounds, the lower one never below zero."""
    return Interval(value=value, low=max(0.0, value - u95), high=value + u95)


def total_bound(components: list[Component]) -> float:
    """The 95 % bound in joules of the components' sum."""
    modelled = sum(one.u95_j or 0.0 for one in components if one.quality == "estimated")
    others = [one.u95_j or 0.0 for one in components if one.quality != "estimated"]
    return hypot(modelled, *others)


def total_of(components: list[Component]) -> Total:
    """The sum over components, what is missing from it, and the part above idle where known."""
    known = [one for one in components if one.energy_j is not None]
    bound_j = total_bound(known)

    def summed(*qualities: str) -> float:
        return sum(one.energy_j or 0.0 for one in known if one.quality in qualities)

    above = [one.above_idle_j for one in known if one.above_idle_j is not None]
    complete = bool(known) and len(above) == len(known)
    above_j = sum(above)
    return Total(
        energy_j=bounded(sum(one.energy_j or 0.0 for one in known), bound_j),
        measured_j=summed("measured"),
        estimated_j=summed("estimated", "declared"),
        above_idle_j=Interval(value=above_j, low=above_j - bound_j, high=above_j + bound_j)
        if complete
        else None,
        missing=[one.id for one in components if one.energy_j is None],
    )


def phases_of(trace: Trace, parts: Sequence[Measured]) -> list[Phase]:
    """Each phase with its joules, and by how much they change when both its bounds move by 5 %.

    A window without phases is one, named after its stage. What was before and after the window is
    not seen: a bound that moves beyond it adds nothing. A phase that is entered again and again
    (every batch) is one, from its first begin to its last end, so that a record stays small.
    """
    start_ns, end_ns = trace.start_ns, trace.end_ns
    phases = []
    for name, begin_ns, finish_ns in _spans(trace) or [_whole(trace)]:
        shift_ns = SHIFT * (finish_ns - begin_ns)

        def joules(by_ns: float, a: int = begin_ns, b: int = finish_ns) -> float:
            low = min(max(a + by_ns, start_ns), end_ns)
            high = min(max(b + by_ns, start_ns), end_ns)
            return sum(
                between(part.curve, low, high)
                for part in parts
                if part.component.energy_j is not None
            )

        energy_j = joules(0.0)
        phases.append(
            Phase(
                name=name,
                start_s=(begin_ns - start_ns) / 1e9,
                end_s=(finish_ns - start_ns) / 1e9,
                energy_j=energy_j,
                shift_minus5pct_j=joules(-shift_ns) - energy_j,
                shift_plus5pct_j=joules(shift_ns) - energy_j,
            )
        )
    return _merged(phases)


def _merged(phases: Sequence[Phase]) -> list[Phase]:
    """Phases of one name as one."""
    by_name: dict[str, list[Phase]] = {}
    for one in phases:
        by_name.setdefault(one.name, []).append(one)
    return [
        same[0]
        if len(same) == 1
        else Phase(
            name=name,
            start_s=same[0].start_s,
            end_s=max(one.end_s for one in same),
            energy_j=sum(one.energy_j for one in same),
            shift_minus5pct_j=sum(one.shift_minus5pct_j or 0.0 for one in same),
            shift_plus5pct_j=sum(one.shift_plus5pct_j or 0.0 for one in same),
            times=len(same),
        )
        for name, same in by_name.items()
    ]


def _whole(trace: Trace) -> tuple[str, int, int]:
    return str(trace.plan["record"]["stage"]), trace.start_ns, trace.end_ns


def _spans(trace: Trace) -> list[tuple[str, int, int]]:
    """(name, begin, end) of every phase; one that never ended lasts until the window's end."""
    spans: list[tuple[str, int, int]] = []
    opened: list[tuple[str, int]] = []
    for event in trace.events:
        if event["e"] == "begin":
            opened.append((event["name"], event["t"]))
        elif event["e"] == "end":
            place = max(i for i, (name, _) in enumerate(opened) if name == event["name"])
            name, begin_ns = opened.pop(place)
            spans.append((name, begin_ns, event["t"]))
    spans += [(name, begin_ns, trace.end_ns) for name, begin_ns in opened]
    return sorted(spans, key=lambda span: span[1])


def per_token(total: Total, tokens: Tokens) -> JoulesPerToken | None:
    """Joules per token of the job's main meaning of a token; None where none was counted."""
    for meaning in TOKEN_MEANINGS:
        count = getattr(tokens, meaning)
        if count:
            energy = total.energy_j
            return JoulesPerToken(
                numerator="total.energy_j",
                denominator=f"work.tokens.{meaning}",
                value=Interval(
                    value=energy.value / count, low=energy.low / count, high=energy.high / count
                ),
            )
    return None


def overlaps_of(trace: Trace) -> list[str]:
    """Other windows that charged the same devices meanwhile, in words."""
    return [event["text"] for event in trace.events if event["e"] == "overlap"]


def said_of(trace: Trace) -> list[Warning]:
    """What a reader of the figures must know about the window as a whole."""
    found = [Warning(code="meter", text=text) for text in trace.remarks]
    for code in ("overlap", "nested"):
        said = [event["text"] for event in trace.events if event["e"] == code]
        found += [Warning(code=code, text=text) for text in said]
    found += [
        Warning(code=event["code"], text=event["text"])
        for event in trace.events
        if event["e"] == "warning"
    ]
    wanted = trace.plan["settings"]["cpu_attribution"] == "cgroup"
    if wanted and trace.samples and trace.samples[0].cgroup_s is None:
        text = "the job is in no control group of its own; its processes' CPU time is charged"
        found.append(Warning(code="no_cgroup", text=text))
    if trace.samplers > 1:
        text = f"the sampling process was replaced {trace.samplers - 1} times"
        found.append(Warning(code="sampler_replaced", text=text))
    if trace.torn_rows:
        text = f"{trace.torn_rows} torn lines of the trace were skipped"
        found.append(Warning(code="torn_rows", text=text))
    return found
