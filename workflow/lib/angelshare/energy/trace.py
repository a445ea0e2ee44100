"""The trace of a window: every sample and event, as text while it runs and as Parquet after.

Times are nanoseconds of CLOCK_MONOTONIC, energies cumulative counters. The Parquet file holds all
that a sidecar is computed from: one row a sample, one column a meter (and, for reading, the phase
and the utilisation of the CPU), and in the schema's metadata (key ``angelshare``) the plan of the
window, the devices, the events and how sampling ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from angelshare.energy.probes.nvml import COLUMNS as GPU_COLUMNS
from angelshare.files import publishing

METADATA_KEY = b"angelshare"


@dataclass(kw_only=True, slots=True)
class Sample:
    """One reading of all meters; a meter that could not be read is missing or None."""

    t_ns: int
    utc_ns: int
    boot_ns: int
    cpu_s: float
    """Cumulative CPU time of the process tree."""
    cgroup_s: float | None
    """Cumulative CPU time of the job's control group, where that is what is charged."""
    busy_s: float
    """Cumulative busy CPU time of the machine."""
    rss_bytes: int
    used_bytes: int
    gpu: dict[str, list[int | None]]
    """By UUID, in the order of the sampler's columns."""
    rapl: dict[str, int | None]
    """Counter in microjoules by zone id."""


@dataclass(kw_only=True)
class Trace:
    """All that was seen of one window."""

    plan: dict[str, Any]
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    zones: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    samplers: int = 0
    """How many sampling processes wrote it; more than one when one was killed."""
    torn_rows: int = 0
    sampler: tuple[int, int] | None = None
    """Process id and start (clock ticks) of the last sampling process; not kept in Parquet."""

    @property
    def broken_off(self) -> bool:
        """Whether job and sampler both ended without a word: up to one period is not seen."""
        return self.end is None and not any(event["e"] == "close" for event in self.events)

    @property
    def start_ns(self) -> int:
        """When the window opened."""
        opened = [event["t"] for event in self.events if event["e"] == "open"]
        return int(opened[0]) if opened else self.plan["start_ns"]

    @property
    def end_ns(self) -> int:
        """When it closed: the job's word, else the sampler's, else the last sample."""
        closed = [event["t"] for event in self.events if event["e"] == "close"]
        if closed:
            return int(closed[-1])
        if self.end is not None and self.end["reason"] == "parent_died":
            return int(self.end["t"])
        return max(self.start_ns, self.samples[-1].t_ns if self.samples else 0)


def read_plan(path: Path) -> dict[str, Any]:
    """The plan of a running window from its trace; raises OSError or ValueError without one."""
    with path.open("rb") as stream:
        line = stream.readline()
    try:
        plan: dict[str, Any] = json.loads(line)["plan"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no trace") from error
    return plan


def read_text(path: Path) -> Trace:
    """Parse a running (or broken off) trace; torn lines are counted and skipped."""
    trace: Trace | None = None
    header: dict[str, Any] = {"gpus": [], "zones": []}
    torn = 0
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if trace is None:
            trace = Trace(plan=entry["plan"])
        elif entry["k"] == "s":
            trace.samples.append(_sample(entry, header))
        elif entry["k"] == "e":
            trace.events.append(entry)
        elif entry["k"] == "end":
            trace.end = entry
        elif entry["k"] == "header":
            header = entry
            _add_devices(trace, header)
    if trace is None:
        raise ValueError(f"{path} holds no trace")
    trace.torn_rows = torn
    return trace


def _add_devices(trace: Trace, header: dict[str, Any]) -> None:
    trace.gpus.update({gpu["uuid"]: gpu for gpu in header["gpus"]})
    trace.zones.update({zone["id"]: zone for zone in header["zones"]})
    trace.remarks += [text for text in header["remarks"] if text not in trace.remarks]
    trace.samplers += 1
    trace.sampler = header["pid"], header["pid_start"]


def _sample(entry: dict[str, Any], header: dict[str, Any]) -> Sample:
    return Sample(
        t_ns=entry["t"],
        utc_ns=entry["utc"],
        boot_ns=entry["boot"],
        cpu_s=entry["cpu"],
        cgroup_s=entry["cgroup"],
        busy_s=entry["busy"],
        rss_bytes=entry["rss"],
        used_bytes=entry["used"],
        gpu={gpu["uuid"]: row for gpu, row in zip(header["gpus"], entry["gpu"], strict=True)},
        rapl={
            zone["id"]: value for zone, value in zip(header["zones"], entry["rapl"], strict=True)
        },
    )


def write_parquet(trace: Trace, path: Path) -> list[str]:
    """Publish the trace at ``path``; returns the names of its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        name: pa.array([getattr(sample, name) for sample in trace.samples], kind)
        for name, kind in _column_types(pa).items()
    }
    for uuid, gpu in trace.gpus.items():
        for place, name in enumerate(GPU_COLUMNS):
            values = [
                sample.gpu[uuid][place] if uuid in sample.gpu else None for sample in trace.samples
            ]
            columns[f"gpu{gpu['index']}_{name}"] = pa.array(values, pa.int64())
    for zone in trace.zones:
        values = [sample.rapl.get(zone) for sample in trace.samples]
        columns[f"{zone}_uj"] = pa.array(values, pa.int64())
    columns |= {name: pa.array(rates, pa.float64()) for name, rates in _cpu_rates(trace).items()}
    columns["phase"] = pa.array(_phases_at(trace), pa.string())
    names = ("plan", "gpus", "zones", "remarks", "events", "end", "samplers", "torn_rows")
    metadata = json.dumps({name: getattr(trace, name) for name in names})
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: metadata.encode()})
    with publishing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return list(columns)


def _column_types(pa: Any) -> dict[str, Any]:
    whole = dict.fromkeys(("t_ns", "utc_ns", "boot_ns", "rss_bytes", "used_bytes"), pa.int64())
    return {**whole, **dict.fromkeys(("cpu_s", "cgroup_s", "busy_s"), pa.float64())}


def _cpu_rates(trace: Trace) -> dict[str, list[float | None]]:
    """CPU time since the sample before, of the machine and of the job, in percent of one thread."""
    found: dict[str, list[float | None]] = {"busy_cpu_percent": [], "job_cpu_percent": []}
    before: Sample | None = None
    for sample in trace.samples:
        length_s = (sample.t_ns - before.t_ns) / 1e9 if before is not None else 0.0
        for name, seconds in (("busy_cpu_percent", "busy_s"), ("job_cpu_percent", "cpu_s")):
            used_s = getattr(sample, seconds) - getattr(before, seconds) if length_s > 0 else None
            found[name].append(None if used_s is None else max(0.0, 100 * used_s / length_s))
        before = sample
    return found


def _phases_at(trace: Trace) -> list[str | None]:
    """The innermost open phase at each sample."""
    marks = sorted(
        (event for event in trace.events if event["e"] in ("begin", "end")),
        key=lambda event: event["t"],
    )
    names: list[str | None] = []
    open_names: list[str] = []
    place = 0
    for sample in trace.samples:
        while place < len(marks) and marks[place]["t"] <= sample.t_ns:
            if marks[place]["e"] == "begin":
                open_names.append(marks[place]["name"])
            elif marks[place]["name"] in open_names:
                open_names.remove(marks[place]["name"])
            place += 1
        names.append(open_names[-1] if open_names else None)
    return names


def read_parquet(path: Path) -> Trace:
    """Read a trace back; a sidecar computed from it equals the one computed from the text."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    trace = Trace(**json.loads(table.schema.metadata[METADATA_KEY]))
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    base = ("t_ns", "utc_ns", "boot_ns", "rss_bytes", "used_bytes", "cpu_s", "cgroup_s", "busy_s")
    for row in range(table.num_rows):
        trace.samples.append(
            Sample(
                **{name: columns[name][row] for name in base},
                gpu={
                    uuid: [columns[f"gpu{gpu['index']}_{name}"][row] for name in GPU_COLUMNS]
                    for uuid, gpu in trace.gpus.items()
                },
                rapl={zone: columns[f"{zone}_uj"][row] for zone in trace.zones},
            )
        )
    return trace
