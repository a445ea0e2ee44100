"""A study's Slurm jobs: the state of each, why it ended, and what to do about it.

Three sources are put together: what Snakemake waits for (by its own log), what Slurm says
(``squeue`` with all states, which needs no accounting; ``sacct`` for what it has forgotten, where
there is accounting), and the Slurm logs, which stay where a job did not succeed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from angelshare.progress.attempts import Attempt

ACTIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STAGE_OUT"}
)
GONE = "gone"
"""Slurm knows nothing of the job any more."""
LOG_TAIL_BYTES = 20_000

_SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+)")
_FINISHED = re.compile(r"Finished jobid: (\d+)")
_FAILED = re.compile(r"external_jobid: (\d+)")
_CAUSES = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "CANCELLED": "cancelled",
}
_TRACES = (
    (r"oom[-_ ]?kill|Exceeded job memory limit|memory limit|CUDA out of memory", "out of memory"),
    (r"std::bad_alloc|MemoryError|Cannot allocate memory", "out of memory"),
    (r"DUE TO TIME LIMIT", "time limit"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"DUE TO NODE FAILURE|NODE FAILURE", "node failure"),
    (r"CANCELLED AT", "cancelled"),
)
KILLED = "killed, which memory, a node or a person may have done"
_ERROR = re.compile(
    r"^(?:\[[^]]*\]|\S+Z) error: (.+)$"  # as jobs say it, on the terminal or in their logs
    r"|^((?:\w+\.)*\w*(?:Error|Exception): .+)$",  # the end of a traceback
    re.MULTILINE,
)
ERROR_LENGTH = 300
WAYS_OUT = {
    "out of memory": "the next attempt asks for more; or raise hardware.memory_mb",
    "time limit": "the next attempt asks for more time and goes on from the last checkpoint; or "
    "raise hardware.runtime_min",
    "preempted": "Slurm starts it again, and it goes on from the last checkpoint",
    "node failure": "Slurm starts it again on another node",
    "cancelled": "start the workflow again if that was not meant",
    KILLED: "start the workflow again; what is finished stays",
    "failed": "its log says why; start the workflow again when that is mended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """One Slurm job of this folder."""

    number: str
    state: str
    """Slurm's word, or `GONE`."""
    rule: str
    """Rule and wildcards, as the plugin's comment or log folder has them."""
    waited_for: bool
    """Whether Snakemake counts it among its unfinished jobs."""
    log: Path | None
    """Slurm's own log, where it is there."""
    record: Path | None
    """Its last attempt's record."""
    cause: str | None
    """Why it ended without success; None for one that runs, waits or succeeded."""

    @property
    def stuck(self) -> bool:
        """Whether Snakemake waits for a job that Slurm has ended or forgotten."""
        return self.waited_for and self.state not in ACTIVE and self.state != "COMPLETED"

    @property
    def way_out(self) -> str:
        """What to do."""
        if self.state == "PREEMPTED":
            return f"`scontrol requeue {self.number}`: Slurm ended it and will not start it again"
        return WAYS_OUT.get(self.cause, WAYS_OUT["failed"]) if self.cause else ""

    def __str__(self) -> str:
        text = f"Slurm job {self.number} ({self.rule}): {self.state.lower().replace('_', ' ')}"
        if self.cause:
            text += f", likely cause: {self.cause}"
        for name, path in (("log", self.log), ("record", self.record)):
            if path is not None:
                text += f"; {name} {path}"
        return f"{text}. {self.way_out[:1].upper()}{self.way_out[1:]}.".replace(". .", ".")


def cluster_jobs(
    folder: Path, attempts: Iterable[Attempt], logs: Path = Path("logs/slurm")
) -> list[SlurmJob]:
    """Every Slurm job of the workflow in ``folder`` that Slurm, Snakemake or a log knows of."""
    states, comments = slurm_states(folder)
    waited_for = awaited(folder)
    found = {path.stem: path for path in (folder / logs).rglob("*.log") if path.stem.isdigit()}
    numbers = {*states, *waited_for, *found}
    missing = {number for number in numbers if number not in states}
    states = {**states, **accounted_states(missing)}
    last = {attempt.slurm_job: attempt for attempt in attempts if attempt.slurm_job}
    jobs = []
    for number in sorted(numbers, key=int):
        attempt, log = last.get(number), found.get(number)
        state = states.get(number, GONE)
        named = comments.get(number) or (str(log.parent.relative_to(folder / logs)) if log else "")
        jobs.append(
            SlurmJob(
                number=number,
                state=state,
                rule=named.removeprefix("rule_").replace("_wildcards_", " ").replace("/", " "),
                waited_for=number in waited_for,
                log=log,
                record=attempt.path if attempt else None,
                cause=likely_cause(state, log, attempt),
            )
        )
    return jobs


def slurm_states(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """State and comment by job number, of the jobs that were submitted from ``folder``."""
    lines = _output(
        ["squeue", "--me", "--states=all", "--noheader", "--format=%i|%T|%k|%Z"]
    ).splitlines()
    states, comments = {}, {}
    for line in lines:
        number, state, comment, where = (line.split("|", 3) + [""] * 3)[:4]
        if where.strip() == str(folder.absolute()):
            states[number.strip()], comments[number.strip()] = state.strip(), comment.strip()
    return states, comments


def accounted_states(numbers: Iterable[str]) -> dict[str, str]:
    """What Slurm's accounting says of these jobs; nothing where there is none."""
    wanted = ",".join(sorted(numbers))
    if not wanted or shutil.which("sacct") is None:
        return {}
    text = _output(["sacct", "-X", "-P", "-n", "-o", "JobIDRaw,State", "-j", wanted])
    pairs = (line.split("|", 1) for line in text.splitlines() if "|" in line)
    return {number: state.split()[0] for number, state in pairs if state.strip()}


def awaited(folder: Path) -> set[str]:
    """The Slurm jobs whose end the last Snakemake of ``folder`` has not seen, from its own log."""
    logs = sorted((folder / ".snakemake" / "log").glob("*.snakemake.log"))
    submitted: dict[str, str] = {}
    for line in logs[-1].read_text(errors="replace").splitlines() if logs else []:
        if match := _SUBMITTED.search(line):
            submitted[match[1]] = match[2]
        elif match := _FINISHED.search(line):
            submitted.pop(match[1], None)
        elif match := _FAILED.search(line):
            submitted = {job: number for job, number in submitted.items() if number != match[1]}
    return set(submitted.values())


def likely_cause(state: str, log: Path | None, attempt: Attempt | None) -> str | None:
    """Why a job ended without success: Slurm's state, a trace in its log, its record, its error."""
    state = state.split()[0]
    if state in ACTIVE or state == "COMPLETED":
        return None
    if attempt is not None and attempt.status == "preempted":
        return "preempted"  # it asked Slurm; the log says no more than "cancelled"
    if state in _CAUSES:
        return _CAUSES[state]
    tail = _tail(log) if log else ""
    for pattern, cause in _TRACES:
        if re.search(pattern, tail, re.IGNORECASE):
            return cause
    return cause_of_attempt(attempt, log) if attempt else _error(log)


def cause_of_attempt(attempt: Attempt, log: Path | None) -> str:
    """Why an attempt ended, as far as its own record and its log (job's or Slurm's) tell."""
    if attempt.status == "preempted":
        return "preempted"
    return KILLED if attempt.status == "killed" else _error(log)


def _error(log: Path | None) -> str:
    """The last error that a log tells of, shortened."""
    found = list(_ERROR.finditer(_tail(log))) if log else []
    error = (found[-1][1] or found[-1][2]).strip() if found else "failed"
    return error if len(error) <= ERROR_LENGTH else f"{error[:ERROR_LENGTH]}..."


def sent_back(job: SlurmJob) -> bool:
    """Whether the job waits or runs again, under the number of an attempt that has ended."""
    return job.state in ACTIVE and job.state != "COMPLETING"


def requeue(number: str) -> bool:
    """Ask Slurm to start an ended job again under its number; whether it will."""
    done = _run(["scontrol", "requeue", number])
    return done is not None and done.returncode == 0


def _output(command: list[str]) -> str:
    done = _run(command)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
