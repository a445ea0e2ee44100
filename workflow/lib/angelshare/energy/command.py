"""Measuring any command: the same window, the same sidecar, no workflow needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from angelshare.energy.joining import rank_window
from angelshare.energy.launch import launch_of
from angelshare.energy.ranks import ranks_folder
from angelshare.energy.settings import CarbonSettings, EnergySettings
from angelshare.energy.windows import Job, Terminated, window
from angelshare.errors import AngelshareError


class CommandFailed(SystemExit):
    """The measured command ended with another status than 0; the attempt is recorded as failed."""


def meter(
    command: Sequence[str],
    out: Path,
    settings: EnergySettings,
    carbon: CarbonSettings | None = None,
) -> Path:
    """Run ``command`` in a window; the sidecar is ``out``, all attempts lie beside it.

    Started by a launcher of several processes, each has a sidecar of its own in the folder of
    ranks beside ``out``, to be merged when all have ended. Attempts of the same command line share
    one bill. Returns where the sidecar is. Raises CommandFailed with the command's status, and
    AngelshareError for a command that cannot be started.
    """
    launch = launch_of(os.environ)
    if launch is not None and launch.world > 1:
        out = ranks_folder(out) / f"{launch.rank:05d}.json"
    job = Job(
        rule="meter",
        stage="meter",
        role="other",
        sidecar=out,
        attempts=out.with_suffix(".attempts"),
        wildcards={"command": " ".join(command)},
    )
    with window(job, settings, carbon):
        _run(command)
    return out


def join(command: Sequence[str]) -> None:
    """Run ``command`` as a part of the job whose window is open around this process.

    Raises as :func:`meter` does, and AngelshareError where no window is open.
    """
    with rank_window():
        _run(command)


def _run(command: Sequence[str]) -> None:
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise AngelshareError(f"{command[0]}: {error.strerror}.") from error
    try:
        status = process.wait()
    except (Terminated, KeyboardInterrupt):
        process.terminate()
        process.wait()
        raise
    if status != 0:
        raise CommandFailed(status if status > 0 else 128 - status)
