"""How long the phases of an evaluation last: whether the meter could tell them apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from angelshare.evaluation.scores import Phase


class PhaseClock:
    """Opens phases of an energy window, and times them by name."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The window's phase ``name``."""
        began = time.monotonic()
        with self._phase(name):
            yield
        spent_s, times = self._spent.get(name, (0.0, 0))
        self._spent[name] = spent_s + time.monotonic() - began, times + 1

    def unresolved(self, period_s: float) -> Iterator[str]:
        """One line for each phase shorter, on average, than the meter's period.

        The meter gives such a phase its share of the time between two readings: that is a share of
        the time, and not of the power, which differs between phases.
        """
        for name, (spent_s, times) in self._spent.items():
            if spent_s / times < period_s:
                yield (
                    f"a {name} lasted {spent_s / times:.3f} s on average, the meter reads every "
                    f"{period_s:g} s: the joules of {name} are its share of time, not of power. A "
                    "larger evaluation.batch_size or a shorter energy.period_s tells them apart"
                )
