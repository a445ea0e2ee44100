"""Measuring any command: the same window, the same sidecar, no workflow needed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

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
) -> None:
    """Run ``command`` in a window; the sidecar is ``out``, all attempts lie beside it.

    Attempts of the same command line share one bill. Raises CommandFailed with the command's
    status, and AngelshareError for a command that cannot be started.
    """
    job = Job(
        rule="meter",
        stage="meter",
        role="other",
        sidecar=out,
        attempts=out.with_suffix(".attempts"),
        wildcards={"command": " ".join(command)},
    )
    with window(job, settings, carbon):
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
