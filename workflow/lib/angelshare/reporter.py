"""Progress lines of a job, on the terminal and in its log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

PROGRESS_EVERY_S = 5.0


class Reporter:
    """Progress lines on the terminal and in the job's log; no more than one every few seconds."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.guard: Callable[[], None] = lambda: None
        """Called with every step; raises when the job had better stop."""
        self.used_j: Callable[[], float | None] = lambda: None
        """What the job has used so far, once its window is open."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        self._last = 0.0

    def __call__(self, step: int, of: int, text: str = "") -> None:
        """Say that ``step`` of ``of`` is done, with a remark; the last step is always said."""
        self.guard()
        now = time.monotonic()
        if step < of and now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        used_j = self.used_j()
        spent = "" if used_j is None else f"({used_j:,.0f} J)"
        self.say(" ".join(part for part in (f"{step}/{of}", text, spent) if part))

    def say(self, text: str) -> None:
        """Write a line to the terminal and the log."""
        print(f"[{self.name}] {text}", file=sys.stderr, flush=True)
        with self.log.open("a") as stream:
            stream.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")
