"""Passing SIGTERM on to a job's script.

Where Slurm tracks processes by cgroup, the warning before a preemption or a time limit reaches the
first process of a job's step alone. That is Snakemake, which goes on waiting for its job; the
script, which could save its work, would only be killed at the end of the grace.
"""

from __future__ import annotations

import os
import signal
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
