"""A job that Slurm takes its machine from: who is told, and how it comes back.

Where Slurm tracks processes by cgroup, the warning before a preemption or a time limit reaches the
first process of a job's step alone. That is Snakemake, which goes on waiting for its job; the
script, which could save its work, would only be killed at the end of the grace. And a job that has
saved its work and ends before the grace does counts as failed, unless it asks to be queued again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading

SCRIPTS = "/.snakemake/scripts/"
"""Where Snakemake puts the scripts that it runs."""


def pass_on_termination() -> None:
    """From now on, whatever else this process does about SIGTERM, scripts it runs get it too.

    The handler that Snakemake sets later stays as it is; there must be one. Main thread only.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_pass_on, args=(reader,), name="termination", daemon=True).start()


def _pass_on(reader: int) -> None:
    import psutil

    while number := os.read(reader, 1):
        if number[0] != signal.SIGTERM:
            continue
        for process in psutil.Process().children(recursive=True):
            try:
                if any(SCRIPTS in word for word in process.cmdline()):
                    process.terminate()
            except psutil.Error:
                continue  # it has ended


def preempted() -> bool:
    """Whether Slurm says that it is taking the machine back (this job's PreemptTime is set)."""
    number = os.environ.get("SLURM_JOB_ID")
    answer = _scontrol("-o", "show", "job", number) if number else None
    fields = dict(part.split("=", 1) for part in (answer or "").split() if "=" in part)
    return fields.get("PreemptTime", "None") not in ("None", "Unknown", "")


def queue_again() -> bool:
    """Put this Slurm job back into the queue under its number; whether Slurm does."""
    number = os.environ.get("SLURM_JOB_ID")
    return number is not None and _scontrol("requeue", number) is not None


def _scontrol(*arguments: str) -> str | None:
    """What scontrol answers; None where there is none, or it fails."""
    tool = shutil.which("scontrol")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
