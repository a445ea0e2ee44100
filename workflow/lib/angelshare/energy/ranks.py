"""One record of a job that ran as many processes, on one node or several.

Each rank measures what it sees. A whole device that several ranks saw is counted once (the longest
look at it), shares of a device belong to each rank's own processes and are added, and what one rank
could not read is missing from the sum. Each rank needs an attempts folder of its own: within one
folder, records of one job are its retries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from angelshare.energy.attempts import bill_of
from angelshare.energy.closing import Status
from angelshare.energy.measures import Component
from angelshare.energy.sidecar import Record, Warning
from angelshare.energy.totals import total_of
from angelshare.errors import AngelshareError

SHARED = ("cpu_time_share", "declared_share", "cgroup")


def merge_attempts(records: Iterable[Record]) -> Record:
    """The last attempt of all ranks together, with the bill over all attempts.

    ``records`` are all attempts of all ranks of one job. Raises AngelshareError as
    :func:`merge_ranks` does, and where there is no record.
    """
    tries: defaultdict[int, list[Record]] = defaultdict(list)
    for one in records:
        tries[one.record.attempt].append(one)
    if not tries:
        raise AngelshareError("There is no record to merge; name the attempts folder of each rank.")
    merged = [merge_ranks(tries[number]) for number in sorted(tries)]
    merged[-1].bill = bill_of(merged)
    return merged[-1]


def merge_ranks(records: Sequence[Record]) -> Record:
    """The record of one attempt of all ranks together, without a bill.

    Its times span the earliest start and the latest end.
    Raises AngelshareError for records of different jobs.
    """
    jobs = {(one.record.rule, str(sorted((one.record.wildcards or {}).items()))) for one in records}
    if len(jobs) != 1:
        raise AngelshareError(f"{len(jobs)} jobs cannot be merged into one record: {sorted(jobs)}.")
    first = min(records, key=lambda record: record.time.start_utc)
    last = max(records, key=lambda record: record.time.end_utc)
    whole: dict[tuple[str, str], tuple[float, Component]] = {}
    shares: list[Component] = []
    seen_twice = 0
    for record in records:
        for part in record.components:
            named = part.model_copy(update={"id": f"{record.run.host}:{part.id}"})
            if part.attribution in SHARED or part.energy_j is None:
                rank = record.run.rank
                named.id += f":{rank if rank is not None else record.record.id}"
                shares.append(named)
                continue
            uuid = part.device.uuid if part.device and part.device.uuid else part.id
            key = record.run.host, uuid
            known = whole.get(key)
            seen_twice += known is not None
            if known is None or record.time.duration_s > known[0]:
                whole[key] = record.time.duration_s, named
    components = [*(part for _, part in whole.values()), *shares]
    merged = first.model_copy(deep=True)
    merged.components = components
    merged.total = total_of(components)
    merged.time.end_utc = last.time.end_utc
    merged.time.duration_s = max(record.time.duration_s for record in records)
    merged.run.world = len(records)
    merged.run.rank = None
    merged.record.status = _worst(records)
    merged.record.complete = not merged.total.missing
    merged.phases = merged.carbon = merged.work = merged.bill = None
    if seen_twice:
        text = f"{seen_twice} devices were seen by several ranks and are counted once"
        merged.warnings = [*(merged.warnings or []), Warning(code="ranks_overlap", text=text)]
    return merged


def _worst(records: Sequence[Record]) -> Status:
    order: tuple[Status, ...] = ("ok", "running", "preempted", "failed", "killed")
    return max((record.record.status for record in records), key=order.index)
