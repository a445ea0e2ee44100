"""The attempt records of a study, read often and by the thousand: only what progress needs.

Records of attempts that ended never change, so each is read once. One that still says ``running``
is read again; where its process is dead, the sweep of `angelshare.energy.attempts` closes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a job."""

    path: Path
    """Its record."""
    rule: str
    wildcards: dict[str, str]
    status: str
    """running, ok, failed, killed or preempted."""
    started: datetime
    duration_s: float
    energy_j: float
    """So far, where it is running."""
    host: str
    slurm_job: str | None
    exit_code: int | None
    signal: int | None


class Attempts:
    """Reader of folders of attempts with a memory of what has ended."""

    def __init__(self) -> None:
        self._ended: dict[Path, Attempt] = {}

    def read(self, folders: Iterable[Path]) -> list[Attempt]:
        """Every attempt in these folders, by start."""
        found = [attempt for folder in folders for attempt in self._folder(folder)]
        return sorted(found, key=lambda attempt: (attempt.started, attempt.path))

    def _folder(self, folder: Path) -> list[Attempt]:
        attempts = self._look(folder)
        if any(one.status == "running" for one in attempts):
            _sweep(folder)
            attempts = self._look(folder)
        return attempts

    def _look(self, folder: Path) -> list[Attempt]:
        attempts = []
        for path in folder.glob("[0-9]*.json"):
            attempt = self._ended.get(path) or _read(path)
            if attempt is None:
                continue
            if attempt.status != "running":
                self._ended[path] = attempt
            attempts.append(attempt)
        return attempts


def _sweep(folder: Path) -> None:
    """Close the records of dead processes; a damaged record is accounting's to complain about."""
    from angelshare.energy.attempts import read_attempts

    try:
        read_attempts(folder)
    except AngelshareError:
        return


def _read(path: Path) -> Attempt | None:
    try:
        values = read_json(path)
        return _attempt(path, values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _attempt(path: Path, values: dict[str, Any]) -> Attempt:
    record, time, run = values["record"], values["time"], values["run"]
    started = datetime.fromisoformat(time["start_utc"])
    running = record["status"] == "running"
    elapsed_s = (datetime.now(UTC) - started).total_seconds()
    return Attempt(
        path=path,
        rule=record["rule"],
        wildcards=record.get("wildcards") or {},
        status=record["status"],
        started=started,
        duration_s=elapsed_s if running else time["duration_s"],
        energy_j=_live_j(path, record["id"]) if running else values["total"]["energy_j"]["value"],
        host=run["host"],
        slurm_job=(run.get("slurm") or {}).get("job_id"),
        exit_code=record.get("exit_code"),
        signal=record.get("signal"),
    )


def _live_j(path: Path, identity: str) -> float:
    """What the meter of a running attempt last published."""
    try:
        lines = (path.parent / f"angelshare-{identity}.prom").read_text().splitlines()
    except OSError:
        return 0.0
    named = (line for line in lines if line.startswith("angelshare_energy_joules{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in named)
