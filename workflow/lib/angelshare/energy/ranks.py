"""One record of a job that ran as many processes, on one node or several.

Each rank measures what it sees in a window of its own. Their traces are put together: a whole
device (or control group) that several ranks saw on one machine is measured once, over the union of
their windows; what belongs to each rank's own processes is added, but not that of a rank whose
processes another window has counted already (it lies within that window's process tree).

Two ways lead here. ``angelshare meter`` under a launcher leaves ``energy.ranks/00003.json`` and
``energy.ranks/00003.attempts/`` per rank, and :func:`merge_folders` makes one record of them. A
window of the workflow has ``ATTEMPT.ranks/`` beside its attempt, laid out alike, for what its job
starts elsewhere (:func:`angelshare.energy.joining.rank_window`); its record includes them.

Clocks of one boot are one clock; another machine's are aligned by its wall clock, which moves
phases and hours of carbon, never a rank's joules.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angelshare.energy.computing import Status, parts_of, record_of
from angelshare.energy.curves import Measured
from angelshare.energy.sidecar import Rank, Record, Run, Warning
from angelshare.energy.totals import said_of, total_of
from angelshare.energy.trace import Trace

OWN = ("cpu_time_share", "declared_share")
"""Attributions that charge a rank for its own processes alone."""
SETTLE_NS = 50_000_000
"""After one sampler's last reading of a counter, another's is surely younger."""

Key = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one window saw and how it ended; identity and place are those of its plan."""

    trace: Trace
    status: Status
    id: str
    run: Run

    @property
    def boot(self) -> str:
        """The machine, as long as it runs."""
        return self.run.boot_id or self.run.host

    @property
    def utc_ns(self) -> int:
        """When it opened, by the wall clock."""
        return self.trace.start_ns + self.offset_ns

    @property
    def offset_ns(self) -> int:
        """Wall clock less monotonic clock."""
        return int(self.trace.plan["start_utc_ns"]) - int(self.trace.plan["start_ns"])


def look_at(trace: Trace, status: Status) -> Look:
    """The trace of a window that ended so, as something to be merged."""
    run = Run.model_validate(trace.plan["run"])
    return Look(trace=trace, status=status, id=str(trace.plan["record"]["id"]), run=run)


def merge_looks(looks: Sequence[Look], *, status: Status | None = None) -> Record:
    """The record of one attempt of all ranks together; the first look leads.

    The leader gives the job, its phases and its settings of carbon; times span all windows. Unless
    ``status`` is given, it is that of the worst rank, and a rank that left no record is missed.
    """
    ids = {look.id for look in looks}
    pooled = _pooled(looks)
    span = _span(looks, ids)
    said = [warning for look in looks for warning in said_of(_without(look.trace, ids))]
    several = sum(count > 1 for count in Counter(key for key, _ in pooled.shared).values())
    if several:
        text = f"{several} devices were seen by several ranks and are counted once"
        said.append(Warning(code="ranks_overlap", text=text))
    absent = _absent(looks) if status is None else []
    said += absent
    record = record_of(span, pooled.parts, _unique(said), status=status or _worst(looks))
    record.record.complete &= not absent and not any(look.trace.broken_off for look in looks)
    record.run.rank = None
    record.run.world = max(look.run.world or 1 for look in looks)
    record.ranks = [
        Rank(
            id=look.id,
            host=look.run.host,
            rank=look.run.rank,
            status=look.status,
            energy_j=total_of([part.component for part in parts_of(look.trace)]).energy_j.value,
        )
        for look in looks
    ]
    return record


def _worst(looks: Iterable[Look]) -> Status:
    order: tuple[Status, ...] = ("ok", "running", "preempted", "failed", "killed")
    return max((look.status for look in looks), key=order.index)


def _absent(looks: Sequence[Look]) -> list[Warning]:
    """Ranks that their launcher promised and that left no record."""
    world = max(look.run.world or 1 for look in looks)
    absent = sorted({*range(world)} - {look.run.rank for look in looks})
    if not absent or world == 1:
        return []
    text = f"no record of rank {', '.join(map(str, absent))} of {world}: their energy is not known"
    return [Warning(code="ranks_missing", text=text)]


@dataclass(frozen=True)
class _Pool:
    """Components of all looks, and which key each look's shared ones have."""

    parts: list[Measured]
    shared: list[tuple[Key, str]]


def _pooled(looks: Sequence[Look]) -> _Pool:
    """Every device once, every rank's own share once; curves on the leader's clock."""
    ids = {look.id for look in looks}
    shared: defaultdict[Key, list[Look]] = defaultdict(list)
    parts: list[Measured] = []
    own: list[tuple[Look, Measured]] = []
    for look in looks:
        for part in parts_of(look.trace):
            key = _key(look, part)
            if key is not None:
                shared[key].append(look)
            elif look.run.within not in ids:
                own.append((look, part))
    for key, seen in shared.items():
        for number, cluster in enumerate(_clusters(seen)):
            part = _the(parts_of(_chained(cluster)), key)
            suffix = f":{number + 1}" if number else ""
            parts.append(_placed(part, cluster[0], looks[0], suffix))
    numbered = Counter(look.run.rank for look in looks)
    for look, part in own:
        # A job's own step and the one that it starts beside it both begin at rank 0.
        alone = look.run.rank is not None and numbered[look.run.rank] == 1
        rank = look.run.rank if alone else look.id
        parts.append(_placed(part, look, looks[0], f":{rank}"))
    return _Pool(parts, [(key, look.id) for key, seen in shared.items() for look in seen])


def _key(look: Look, part: Measured) -> Key | None:
    """What names the device (or control group) that a component covers; None for a rank's own."""
    component = part.component
    if component.kind == "gpu" and component.device is not None:
        mig = component.device.mig if component.attribution == "mig_slices" else None
        return look.boot, None, component.device.uuid, mig
    if component.attribution == "cgroup":
        return look.boot, component.id, None, look.run.cgroup
    if component.attribution in OWN or component.energy_j is None:
        return None
    return look.boot, component.id, None, None


def _the(parts: Iterable[Measured], key: Key) -> Measured:
    """The component of a merged trace that the key names."""
    _, identity, uuid, _ = key
    if identity is not None:
        return next(part for part in parts if part.component.id == identity)
    devices = ((part, part.component.device) for part in parts)
    return next(part for part, device in devices if device is not None and device.uuid == uuid)


def _clusters(looks: Sequence[Look]) -> list[list[Look]]:
    """Looks at one device whose windows touch each other, in order of their start."""
    found: list[list[Look]] = []
    until_ns = 0
    for look in sorted(looks, key=lambda one: one.trace.start_ns):
        if found and look.trace.start_ns <= until_ns:
            found[-1].append(look)
        else:
            found.append([look])
        until_ns = max(until_ns, look.trace.end_ns)
    return found


def _chained(looks: Sequence[Look]) -> Trace:
    """One trace over the union of windows on one machine, read by one sampler after the other."""
    traces = [look.trace for look in looks]
    now = traces[0]
    samples, gpus, zones = list(now.samples), dict(now.gpus), dict(now.zones)
    while later := [one for one in traces if one.start_ns <= now.end_ns < one.end_ns]:
        now = max(later, key=lambda one: one.end_ns)
        seen_ns = samples[-1].t_ns + SETTLE_NS if samples else 0
        samples += [sample for sample in now.samples if sample.t_ns > seen_ns]
        gpus, zones = {**now.gpus, **gpus}, {**now.zones, **zones}
    first = traces[0]
    events: list[dict[str, Any]] = [{"k": "e", "e": "open", "t": first.start_ns}]
    if not now.broken_off:
        events.append({"k": "e", "e": "close", "t": now.end_ns})
    return dataclasses.replace(
        first, gpus=gpus, zones=zones, samples=samples, events=events, end=None
    )


def _placed(part: Measured, look: Look, leader: Look, suffix: str) -> Measured:
    """The component named after its host, its curve on the leader's clock."""
    by_ns = 0 if look.boot == leader.boot else look.offset_ns - leader.offset_ns
    component = part.component
    component.id = f"{look.run.host}:{component.id}{suffix}"
    curve = [(t_ns + by_ns, joules) for t_ns, joules in part.curve]
    return Measured(component=component, curve=curve, warnings=part.warnings)


def _span(looks: Sequence[Look], ids: set[str]) -> Trace:
    """The leader's trace from the first opening to the last closing, with the work of all."""
    leader = looks[0]
    opened, closed = leader.trace.start_ns, leader.trace.end_ns
    gpus: dict[str, dict[str, Any]] = {}
    work: Counter[str] = Counter()
    marks = [event for event in leader.trace.events if event["e"] in ("begin", "end")]
    files: list[dict[str, Any]] = []
    overlaps: list[dict[str, Any]] = []
    for look in looks:
        by_ns = 0 if look.boot == leader.boot else look.offset_ns - leader.offset_ns
        opened = min(opened, look.trace.start_ns + by_ns)
        closed = max(closed, look.trace.end_ns + by_ns)
        gpus |= look.trace.gpus
        events = _without(look.trace, ids).events
        counted = [event["work"] for event in events if event["e"] == "work"]
        work.update(counted[-1] if counted else {})
        files += [event for event in events if event["e"] in ("read", "made")]
        overlaps += [event for event in events if event["e"] == "overlap"]
    events = [{"k": "e", "e": "open", "t": opened}, *marks, *files, *overlaps]
    if work:
        events.append({"k": "e", "e": "work", "t": closed, "work": dict(work)})
    events.append({"k": "e", "e": "close", "t": closed})
    return dataclasses.replace(leader.trace, gpus=gpus, events=events)


def _without(trace: Trace, ids: set[str]) -> Trace:
    """The trace without its remarks about windows that are part of the same record."""
    events = [event for event in trace.events if event.get("id") not in ids]
    return dataclasses.replace(trace, events=events)


def _unique(warnings: Iterable[Warning]) -> list[Warning]:
    found = {json.dumps([one.code, one.text]): one for one in warnings}
    return list(found.values())


def ranks_folder(record: Path) -> Path:
    """Where the ranks of the job whose record this is leave theirs."""
    return record.with_suffix(".ranks")


def attempts_folders(folders: Iterable[Path]) -> list[Path]:
    """The attempts folder of each rank under ``folders``."""
    return sorted({path for folder in folders for path in folder.glob("*.attempts")})
