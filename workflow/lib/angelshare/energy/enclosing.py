"""The window that a process runs in, as it is told to whatever is started in its body."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from angelshare.energy.closing import text_trace
from angelshare.energy.trace import read_plan

ENCLOSING = "ANGELSHARE_WINDOW"
"""Environment variable with the path of the enclosing window's record."""


def enclosing() -> tuple[Path | None, dict[str, Any] | None]:
    """The record that the environment names, and the plan of its window if that is open."""
    named = os.environ.get(ENCLOSING)
    if not named:
        return None, None
    try:
        return Path(named), read_plan(text_trace(Path(named)))
    except (OSError, ValueError):
        return Path(named), None


@contextmanager
def said_to_children(attempt: Path) -> Iterator[None]:
    """Tell what is started in the body in whose window it runs."""
    before = os.environ.get(ENCLOSING)
    os.environ[ENCLOSING] = str(attempt)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ENCLOSING, None)
        else:
            os.environ[ENCLOSING] = before
