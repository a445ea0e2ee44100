"""Slurm's own energy accounting beside ours: joules per job from ``sacct -P -D``.

``ConsumedEnergyRaw`` is whole joules of whole nodes, so it is right only for jobs that had their
nodes alone; it is a second opinion, never a value. Command:
``sacct -P -D -o JobIDRaw,State,ElapsedRaw,ConsumedEnergyRaw,Restarts -j JOB``
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from angelshare.energy.sidecar import Record

UNKNOWN = ("", "0", "18446744073709551614", "18446744073709551615")


def slurm_energies(text: str) -> dict[tuple[str, int], float | None]:
    """Joules by job id and restart count; None where Slurm has no figure (it writes 0 or 2^64-1).

    A job's energy is that of its allocation's row, or the largest of its steps'.
    """
    found: dict[tuple[str, int], float | None] = {}
    for row in csv.DictReader(io.StringIO(text), delimiter="|"):
        job = row["JobIDRaw"].split(".")[0]
        key = job, int(row.get("Restarts") or 0)
        raw = row["ConsumedEnergyRaw"].strip()
        joules = None if raw in UNKNOWN else float(raw)
        known = found.get(key)
        found[key] = joules if known is None else max(known, joules or 0.0)
    return found


def reconcile(records: Iterable[Record], text: str) -> list[dict[str, Any]]:
    """One row a record that ran under Slurm: ours, Slurm's and their ratio (None where unknown)."""
    energies = slurm_energies(text)
    rows = []
    for record in records:
        slurm = record.run.slurm
        if not slurm or "job_id" not in slurm:
            continue
        theirs = energies.get((str(slurm["job_id"]), int(slurm.get("restart_count", 0))))
        ours = record.total.energy_j.value
        rows.append(
            {
                "id": record.record.id,
                "rule": record.record.rule,
                "job_id": slurm["job_id"],
                "energy_j": ours,
                "slurm_energy_j": theirs,
                "ratio": ours / theirs if theirs else None,
            }
        )
    return rows
