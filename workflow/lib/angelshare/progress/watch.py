"""A thread beside a running Snakemake: a line on the study now and then, and what went wrong.

It reads files and, on a cluster, asks ``squeue`` once per look; it changes nothing, with two
exceptions: a job that Slurm preempted and ended, for which the executor plugin would wait for ever,
is put back into the queue under its number; and once the budget is spent, Snakemake is told to
submit nothing more. Looking takes at most a twentieth of the time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from angelshare.planning.spending import budget_spent
from angelshare.progress.attempts import Attempt
from angelshare.progress.cluster import SlurmJob, cause_of_attempt, cluster_jobs, requeue, sent_back
from angelshare.progress.page import write_page
from angelshare.progress.study import Progress, Reader, Task

LOOK_EVERY_S = 20.0
SAY_EVERY_S = 60.0
SHARE_OF_TIME = 20
SETTLING_LOOKS = 2
STUCK_LOOKS = 6
"""Looks after which a job that Slurm has ended counts as one that Snakemake waits for in vain."""

Say = Callable[[str], None]


def _print(text: str) -> None:
    print(f"[study] {text}", file=sys.stderr, flush=True)


class Watch:
    """What was said already, so that everything is said once."""

    def __init__(
        self,
        reader: Reader,
        folder: Path,
        page: Path,
        on_slurm: bool,
        say: Say = _print,
        *,
        rules: Collection[str] = (),
        stop: Callable[[], object] | None = None,
    ) -> None:
        """``rules`` are those of the jobs of this run; ``stop`` tells Snakemake to let the jobs
        finish that run, and to start none."""
        self.reader, self.folder, self.page = reader, folder, page
        self.on_slurm, self.say = on_slurm, say
        self.rules, self.stop = rules, stop
        progress = reader.read()
        self._ended = {attempt.path for attempt in _ended(progress)}
        self._failed = {job.number for job in self._jobs(progress) if job.cause}
        self._summary, self._said_s = "", -SAY_EVERY_S
        self._stuck: dict[str, int] = {}
        self._settling: dict[Path, int] = {}
        self._looking = threading.Lock()

    def start(self) -> None:
        """Look again and again until the process ends."""
        threading.Thread(target=self._run, name="study", daemon=True).start()

    def _run(self) -> None:
        trouble = ""
        while True:
            began = time.monotonic()
            try:
                self.look()
                trouble = ""
            except Exception as error:  # noqa: BLE001 - a watcher never takes the workflow down
                if trouble != repr(error):
                    trouble = repr(error)
                    self.say(f"cannot be looked at now: {trouble}. The jobs go on; looking again")
            took_s = time.monotonic() - began
            time.sleep(max(LOOK_EVERY_S, SHARE_OF_TIME * took_s))

    def look(self, last: bool = False) -> None:
        """News of failures, of jobs that hang, and now and then a summary.

        The ``last`` look, when Snakemake ends, leaves nothing unsaid.
        """
        with self._looking:
            progress = self.reader.read()
            jobs = self._jobs(progress)
            self._failures(progress, {job.number: job for job in jobs}, last)
            self._failures_without_record(jobs)
            self.hanging(jobs)
            if not last:
                self._budget(progress)
            summary, now_s = progress.summary(), time.monotonic()
            if summary != self._summary and (last or now_s - self._said_s >= SAY_EVERY_S):
                self._summary, self._said_s = summary, now_s
                self.say(summary)
            write_page(progress, jobs, self.page)

    def _jobs(self, progress: Progress) -> list[SlurmJob]:
        attempts = [attempt for task in progress.tasks for attempt in task.attempts]
        return cluster_jobs(self.folder, attempts) if self.on_slurm else []

    def _failures_without_record(self, jobs: list[SlurmJob]) -> None:
        """Jobs that ended before their work began, or that belong to no task."""
        for job in jobs:
            unsaid = job.record is None and job.number not in self._failed
            if unsaid and job.cause and job.state != "PREEMPTED":
                self._failed.add(job.number)
                self.say(str(job))

    def _failures(self, progress: Progress, jobs: dict[str, SlurmJob], last: bool) -> None:
        for task in progress.tasks:
            for attempt in task.attempts:
                if attempt.status in ("running", "ok") or attempt.path in self._ended:
                    continue
                job = jobs.get(attempt.slurm_job or "")
                looks = SETTLING_LOOKS if last else self._settling.get(attempt.path, 0)
                unsaid = job is not None and job.cause is None and not ran_again(task, attempt)
                if unsaid and looks < SETTLING_LOOKS:
                    # The process is gone, Slurm has not said yet why.
                    self._settling[attempt.path] = looks + 1
                    continue
                self._ended.add(attempt.path)
                self.say(failure(task, attempt, job))

    def _budget(self, progress: Progress) -> None:
        """Once the budget is spent, have no further job submitted: each would only be refused."""
        ours = (task for task in progress.tasks if task.rule in self.rules)
        if self.stop is None or not any(_to_start(task) for task in ours):
            return
        reader = self.reader
        if said := budget_spent(reader.config, reader.study, reader.store):
            self.say(f"{said}. No further job is submitted; those that run are let finish")
            self.stop()
            self.stop = None

    def hanging(self, jobs: list[SlurmJob]) -> None:
        """Put preempted jobs back into the queue; name those that are waited for in vain."""
        stuck = {job.number: self._stuck.get(job.number, 0) + 1 for job in jobs if job.stuck}
        self._stuck = stuck
        for job in jobs:
            looks = stuck.get(job.number, 0)
            if job.state == "PREEMPTED" and looks == 1 and requeue(job.number):
                self.say(
                    f"Slurm job {job.number} ({job.rule}) was preempted: put back into the queue"
                )
            elif looks == STUCK_LOOKS:
                self.say(
                    f"{job} Snakemake still waits for it: interrupt Snakemake (Ctrl-C) and start "
                    "it again; what is finished stays"
                )


def failure(task: Task, attempt: Attempt, job: SlurmJob | None) -> str:
    """A failed attempt in one line: what, likely why, and where to look."""
    if attempt.status == "preempted":
        cause = "preempted"
    elif ran_again(task, attempt) or (job and job.cause is None and sent_back(job)):
        cause = "Slurm sent it back into the queue (preemption, a node failure, or by hand)"
    elif job is not None and job.cause:
        cause = job.cause
    else:
        # The log is that of the last attempt.
        cause = cause_of_attempt(attempt, task.log if attempt is task.attempts[-1] else None)
    where = f" (Slurm job {attempt.slurm_job} on {attempt.host})" if attempt.slurm_job else ""
    logs = [task.log, *([job.log] if job and job.log else [])]
    return (
        f"{task.name} {attempt.status}{where}, likely cause: {cause}; log "
        f"{' and '.join(map(str, logs))}; record {attempt.path}"
    )


def ran_again(task: Task, attempt: Attempt) -> bool:
    """Whether Slurm has started the job of an attempt anew, under the same number."""
    number, started = attempt.slurm_job, attempt.started
    return number is not None and any(
        later.slurm_job == number and later.started > started for later in task.attempts
    )


def _to_start(task: Task) -> bool:
    """Whether the task still needs a job. One that has ended well may be about to publish."""
    ended_well = any(attempt.status == "ok" for attempt in task.attempts)
    return task.state in ("waiting", "failed") and not ended_well


def _ended(progress: Progress) -> list[Attempt]:
    return [a for task in progress.tasks for a in task.attempts if a.status != "running"]
