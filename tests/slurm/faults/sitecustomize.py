"""Faults for the cluster tests: on PYTHONPATH of every job, active in the scripts of rules alone.

Files in $ANGELSHARE_TEST_FAULTS say what to do whenever a job of a rule counts work:

    slow.<rule>   sleep as many seconds as the file says, so that a test has time to hit the job
    fail.<rule>   raise an error, once: the file is taken away
    eat.<rule>    hold as many MB of memory as the file says, which may be more than was asked for

The processes of a student that trains with several know `slow.train_student`. Snakemake itself asks
Slurm for news every 3 s; to do so ever more rarely would take longer than jobs of a few seconds.
"""

import os
import re
import sys
import time
from pathlib import Path

_script = re.search(r"\.(\w+)\.py$", sys.orig_argv[-1]) if sys.orig_argv else None
_folder = os.environ.get("ANGELSHARE_TEST_FAULTS")


def _asked(fault, rule):
    try:
        return Path(_folder, f"{fault}.{rule}").read_text()
    except OSError:
        return None


if _script and _folder and "/scripts/" in sys.orig_argv[-1]:
    from angelshare.energy.windows import Window

    _count, _rule = Window.count, _script[1]
    _eaten = []

    def count(self, **amounts):
        """Count, after the fault."""
        if _asked("fail", _rule) is not None:
            Path(_folder, f"fail.{_rule}").unlink()
            raise RuntimeError("a fault of the test")
        megabytes = _asked("eat", _rule)
        if megabytes and not _eaten:
            _eaten.append(b"x" * (int(megabytes) * 1_000_000))
            time.sleep(4)
        time.sleep(float(_asked("slow", _rule) or 0))
        _count(self, **amounts)

    Window.count = count

if _folder and "angelshare.student.rank" in sys.orig_argv:
    from angelshare.student.exchange import Exchange

    _say = Exchange.say

    def say(self, **event):
        """Tell the job, after the fault."""
        if "count" in event:
            time.sleep(float(_asked("slow", "train_student") or 0))
        _say(self, **event)

    Exchange.say = say

if _folder and "slurm" in sys.orig_argv:
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    _pause = RemoteExecutor.next_seconds_between_status_checks

    def shorten(self, seconds):
        """Set the pause before the next question."""
        _pause.fset(self, min(seconds, 3))

    RemoteExecutor.next_seconds_between_status_checks = _pause.setter(shorten)
