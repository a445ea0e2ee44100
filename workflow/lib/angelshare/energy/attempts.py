"""Attempts of jobs: reading them, closing those that nobody closed, and the bill of a job.

A job is its rule and its wildcards; its bill is the sum over all its attempts in one folder,
because a joule that a killed attempt spent was spent. An attempt whose process is dead is closed
from its trace by the next reader. Where it cannot be told whether the process lives (another host),
an attempt counts as dead when its trace has not grown for five minutes.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from math import hypot
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from angelshare.energy.closing import close_attempt, looks_in, parquet_trace, text_trace
from angelshare.energy.machine import is_alive
from angelshare.energy.probes.process_tree import start_ticks
from angelshare.energy.ranks import Look, attempts_folders, merge_looks, ranks_folder
from angelshare.energy.sidecar import Bill, Record, Warning
from angelshare.energy.trace import read_text
from angelshare.errors import AngelshareError
from angelshare.files import publish_json

STALE_S = 300.0
CLOSING_LIMIT_S = 10.0


def validate_sidecar(path: Path) -> Record:
    """Read and check a sidecar; raises AngelshareError naming the file and the first bad field."""
    return read_record(path)


def read_record(path: Path) -> Record:
    """The record in one file; raises AngelshareError naming the file and the first bad field."""
    try:
        return Record.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise AngelshareError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise AngelshareError(
            f"{path}: no valid energy sidecar, field {field}: {first['msg']}. "
            "Delete the file's job output and run the job again, or restore the file."
        ) from error
    except ValueError as error:
        raise AngelshareError(f"{path}: no JSON ({error}). Restore the file.") from error


def read_attempts(
    folder: Path,
    rule: str | None = None,
    wildcards: dict[str, Any] | None = None,
    *,
    sweep: bool = True,
) -> list[Record]:
    """All attempts in ``folder`` in order of their start, of one job where it is named.

    Attempts left running by dead processes are closed first, unless ``sweep`` is off. Raises
    AngelshareError for a file that is no sidecar.
    """
    records = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        record = _swept(path, read_record(path)) if sweep else read_record(path)
        if rule is None or job_of(record) == (rule, wildcards or {}):
            records.append(record)
    return sorted(records, key=lambda record: (record.time.start_utc, record.record.id))


def every_record(folders: Iterable[Path]) -> list[Record]:
    """Every attempt below ``folders`` once, and sidecars whose attempt lies elsewhere.

    Records of ranks are part of their job's record and are left out, running ones say nothing yet.
    """
    found: dict[str, Record] = {}
    for folder in folders:
        attempts = folder.name == "attempts" or folder.suffix == ".attempts"
        names = ["**/attempts/*.json", "**/*.attempts/*.json", "**/*energy.json"]
        for path in (path for name in names + ["*.json"] * attempts for path in folder.glob(name)):
            if not any(parent.suffix == ".ranks" for parent in path.relative_to(folder).parents):
                record = read_record(path)
                found.setdefault(record.record.id, record)
    found = {name: one for name, one in found.items() if one.record.status != "running"}
    return sorted(found.values(), key=lambda one: (one.time.start_utc, one.record.id))


def job_of(record: Record) -> tuple[str, dict[str, Any]]:
    """The identity of a job: its rule and its wildcards."""
    return record.record.rule, record.record.wildcards or {}


def _swept(path: Path, record: Record) -> Record:
    """The record, closed from its trace if its process is dead and nobody closed it."""
    if record.record.status != "running":
        return _with_ranks(path, record)
    if not _is_dead(path, record):
        return record
    until = time.monotonic() + CLOSING_LIMIT_S
    while _sampler_lives(path) and time.monotonic() < until:
        time.sleep(0.02)
    record = read_record(path)
    if record.record.status != "running":
        return record
    try:
        return close_attempt(path, status="killed", closed_by="sweeper")
    except (KeyError, OSError, TypeError, ValueError) as error:
        latest = read_record(path)
        if latest.record.status == "running":
            latest.record.status, latest.record.closed_by = "killed", "sweeper"
            text = f"its trace is gone or of another version, its joules are unknown ({error!r})"
            latest.warnings = [*(latest.warnings or []), Warning(code="no_trace", text=text)]
        return latest


def _with_ranks(path: Path, record: Record) -> Record:
    """A closed record, made anew where ranks of its job were closed after it."""
    if not ranks_folder(path).is_dir():
        return record
    _running_ranks(path)
    known = {rank.id for rank in record.ranks or []}
    looks, _ = looks_in(ranks_folder(path))
    if {look.id for look in looks} <= known:
        return record
    ended = record.record
    try:
        fresh = close_attempt(
            path,
            status=ended.status,
            closed_by=ended.closed_by or "sweeper",
            exit_code=ended.exit_code,
            signal=ended.signal,
        )
        fresh.bill = record.bill
        publish_json(path, fresh.to_json())
    except (KeyError, OSError, TypeError, ValueError):
        # Its trace is gone or the folder is another user's: it stays as it was closed.
        return record
    return fresh


def _running_ranks(path: Path) -> int:
    """How many ranks of the job run on; those that died without a word are closed."""
    folders = attempts_folders([ranks_folder(path)])
    records = (one for folder in folders for one in read_attempts(folder))
    return sum(one.record.status == "running" for one in records)


def await_ranks(path: Path) -> None:
    """Wait until the ranks that a job started are closed, for as long as closing may take."""
    until = time.monotonic() + CLOSING_LIMIT_S
    with suppress(AngelshareError):
        while _running_ranks(path) and time.monotonic() < until:
            time.sleep(0.1)


def _is_dead(path: Path, record: Record) -> bool:
    alive = is_alive(record.run)
    if alive is None:
        return time.time() - _written_s(path) > STALE_S
    return not alive


def _written_s(path: Path) -> float:
    """When the record or its trace was last written."""
    files = [one for one in (path, text_trace(path), parquet_trace(path)) if one.exists()]
    return max((one.stat().st_mtime for one in files), default=0.0)


def _sampler_lives(path: Path) -> bool:
    """Whether the sampler of a dead job still lives; then it is about to close the record."""
    try:
        sampler = read_text(text_trace(path)).sampler
    except (OSError, ValueError):
        return False
    return sampler is not None and start_ticks(sampler[0]) == sampler[1]


def close_dead(folder: Path) -> None:
    """Close the attempts in ``folder`` whose processes died without a word; cheap if none did."""
    ranks = any(entry.is_dir() for entry in folder.glob("*.ranks"))
    if ranks or any(True for _ in folder.glob("*.trace.jsonl")):
        read_attempts(folder)


def merge_folders(folders: Iterable[Path]) -> Record:
    """The last attempt of all ranks below ``folders`` as one record, with the bill over all.

    What one command started belongs together; where nothing tells commands apart, the first windows
    of all ranks do, and so on. Raises AngelshareError where there is no closed record, where ranks
    still run, and for ranks of different jobs.
    """
    folders = list(folders)
    found = attempts_folders(folders)
    records = {one.record.id: one for folder in found for one in read_attempts(folder)}
    where = ", ".join(map(str, folders))
    running = [one for one in records.values() if one.record.status == "running"]
    if running:
        first = running[0]
        raise AngelshareError(
            f"{len(running)} ranks in {where} still run, the first of them rank {first.run.rank} "
            f"on {first.run.host}. Merge when they have ended."
        )
    jobs = {f"{one.record.rule} {job_of(one)[1]}" for one in records.values()}
    if len(jobs) > 1:
        raise AngelshareError(f"{len(jobs)} jobs cannot be merged into one record: {sorted(jobs)}.")
    tries: defaultdict[tuple[str, int], list[Look]] = defaultdict(list)
    seen: Counter[tuple[str, int | None]] = Counter()
    looks = [look for folder in folders for look in looks_in(folder)[0]]
    for look in sorted(looks, key=lambda one: (one.utc_ns, one.id)):
        key = look.run.launch or "", look.run.rank
        tries[key[0], seen[key]].append(look)
        seen[key] += 1
    if not tries:
        raise AngelshareError(f"There is no record to merge in {where}: name the folder of ranks.")
    ordered = sorted(tries.values(), key=lambda each: min(look.utc_ns for look in each))
    merged = [merge_looks(sorted(each, key=lambda one: one.run.rank or 0)) for each in ordered]
    for number, one in enumerate(merged):
        one.record.attempt = number + 1
        one.record.closed_by = "meter"
    merged[-1].bill = bill_of(merged)
    return merged[-1]


def settle(path: Path) -> Record:
    """Write the bill of the job's attempts so far into the record at ``path``; returns it."""
    record = read_record(path)
    record.bill = bill_of(read_attempts(path.parent, *job_of(record)))
    publish_json(path, record.to_json())
    return record


def bill_of(attempts: list[Record]) -> Bill:
    """The bill over ``attempts`` of one job; those still running count only as attempts.

    Systematic errors (gain, attribution, model) are the same in every attempt and add linearly.
    """
    closed = [one for one in attempts if one.record.status != "running"]
    systematic_j, own_j = 0.0, 0.0
    for one in closed:
        bound_j = one.total.energy_j.high - one.total.energy_j.value
        edges = [
            hypot(part.u.edge_j95 or 0.0, part.u.gap_j95 or 0.0)
            for part in one.components
            if part.u is not None
        ]
        own = min(bound_j, hypot(*edges))
        systematic_j += (bound_j**2 - own**2) ** 0.5
        own_j = hypot(own_j, own)
    return Bill(
        attempts=max(1, len(attempts)),
        energy_j=sum(one.total.energy_j.value for one in closed),
        wasted_j=sum(one.total.energy_j.value for one in closed if one.record.status != "ok"),
        u95_j=hypot(systematic_j, own_j),
    )
