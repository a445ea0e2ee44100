"""Phases of an energy window that many batches enter in turn: reading prompts, writing answers;
in an on-policy training the student's answers and the teacher's reading of them.

When prompts are answered, of each batch the first forward pass reads the prompts and gives the
first token: prefill. All that follows is decode. The phases follow each other without a gap, so
their joules sum to the batch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from angelshare.energy.windows import Window

TEACHER_LOAD, TEACHER_FORWARD = "teacher_load", "teacher_forward"
"""The teacher within a student's training: what it costs is on that run's bill alone."""
STUDENT_GENERATION = "student_generation"
"""The student's own answers within its training."""

Phase = Callable[[str], AbstractContextManager[None]]
"""Opens a named stretch of the energy window."""


@contextmanager
def unmetered(_name: str) -> Iterator[None]:
    """A phase of no window."""
    yield


@contextmanager
def prefill_then_decode(phase: Phase, model: Any) -> Iterator[None]:
    """One batch: ``prefill`` until the first forward pass of ``model`` is done, then ``decode``."""
    with ExitStack() as phases:
        phases.enter_context(phase("prefill"))

        def first_token(*_: Any) -> None:
            hook.remove()
            phases.close()
            phases.enter_context(phase("decode"))

        hook = model.register_forward_hook(first_token)
        phases.callback(hook.remove)
        yield


@contextmanager
def phases_of(window: Window, period_s: float) -> Iterator[Phase]:
    """Opens phases of ``window``, and warns in its record of those that were too short for a meter
    that reads every ``period_s``.

    The meter gives such a phase its share of the time between two readings: that is a share of the
    time, and not of the power, which differs between phases.
    """
    spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.monotonic()
        with window.phase(name):
            yield
        spent_s, times = spent.get(name, (0.0, 0))
        spent[name] = spent_s + time.monotonic() - began, times + 1

    yield timed
    for name, (spent_s, times) in spent.items():
        if spent_s / times < period_s:
            window.warn(
                "short_phases",
                f"a {name} lasted {spent_s / times:.3f} s on average, the meter reads every "
                f"{period_s:g} s: the joules of {name} are its share of time, not of power. A "
                "larger batch_size or a shorter energy.period_s tells them apart",
            )
