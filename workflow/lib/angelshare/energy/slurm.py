"""Slurm's own energy accounting: joules per job, from ``sacct``.

``ConsumedEnergyRaw`` is whole joules of whole nodes, so it is right only for jobs that had their
nodes alone; it is a second opinion, never a value. A job that ended is asked for, so ``sacct`` has
what ``sstat`` told while it ran.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator

FIELDS = ("Cluster", "JobIDRaw", "State", "ElapsedRaw", "ConsumedEnergyRaw", "Restarts")
UNKNOWN = ("", "0", "18446744073709551614", "18446744073709551615")
JOBS_A_CALL = 500
LIMIT_S = 60.0

SlurmJob = tuple[str, str, int]
"""Cluster, job id and how often the job had been restarted."""


def ask_slurm(jobs: Iterable[SlurmJob]) -> dict[SlurmJob, float | None]:
    """Joules of the jobs that this machine's ``sacct`` knows; none where there is no ``sacct``."""
    tool = shutil.which("sacct")
    wanted = set(jobs)
    numbers = sorted({job for _, job, _ in wanted if job.isdigit()}, key=int)
    found: dict[SlurmJob, float | None] = {}
    for place in range(0, len(numbers) if tool else 0, JOBS_A_CALL):
        found |= slurm_energies(_sacct(str(tool), numbers[place : place + JOBS_A_CALL]))
    return {job: joules for job, joules in found.items() if job in wanted}


def _sacct(tool: str, numbers: list[str]) -> str:
    """What ``sacct`` says, with duplicates (restarts); nothing when it fails or does not answer.

    Old versions know no field Restarts.
    """
    for fields in (FIELDS, FIELDS[:-1]):
        command = [tool, "-P", "-D", "-o", ",".join(fields), "-j", ",".join(numbers)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if done.returncode == 0:
            return done.stdout
    return ""


def slurm_energies(text: str) -> dict[SlurmJob, float | None]:
    """Joules by job; None where Slurm has no figure (it writes nothing, 0 or 2^64-1).

    A job's energy is that of its allocation's row, or the largest of its steps'. Without a column
    Restarts, the allocations of one job are its restarts in their order.
    """
    found: dict[SlurmJob, float | None] = {}
    for key, raw in _rows(text):
        joules = None if raw in UNKNOWN else float(raw)
        known = found.get(key)
        found[key] = joules if known is None else max(known, joules or 0.0)
    return found


def _rows(text: str) -> Iterator[tuple[SlurmJob, str]]:
    allocations: Counter[tuple[str, str]] = Counter()
    for row in csv.DictReader(io.StringIO(text), delimiter="|"):
        job, _, step = row["JobIDRaw"].partition(".")
        name = row["Cluster"], job
        allocations[name] += not step
        restarts = row.get("Restarts")
        number = max(0, allocations[name] - 1) if restarts is None else int(restarts or 0)
        yield (*name, number), row["ConsumedEnergyRaw"].strip()
