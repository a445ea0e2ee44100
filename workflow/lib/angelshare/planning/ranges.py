"""Positive figures with 95 % bounds, multiplied and added as independent or as common errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Range(NamedTuple):
    """A figure and the bounds within which it lies in 95 % of cases; 0 <= low <= value <= high."""

    value: float
    low: float
    high: float

    @staticmethod
    def exactly(value: float) -> Range:
        """A figure that is known."""
        return Range(value, value, value)

    def scaled(self, factor: float) -> Range:
        """This figure times one that is known."""
        return Range(self.value * factor, self.low * factor, self.high * factor)

    def times(self, other: Range) -> Range:
        """The product of independent figures: relative bounds add in quadrature, as logarithms."""
        return Range(
            self.value * other.value,
            self.value * other.value / math.exp(math.hypot(self._down(), other._down())),
            self.value * other.value * math.exp(math.hypot(self._up(), other._up())),
        )

    def within(self, factor: float) -> Range:
        """This figure times an independent one that lies between 1 / factor and factor."""
        return self.times(Range(1.0, 1.0 / factor, factor))

    def _down(self) -> float:
        return math.log(self.value / self.low) if self.low > 0 else 0.0

    def _up(self) -> float:
        return math.log(self.high / self.value) if self.value > 0 else 0.0


NOTHING = Range.exactly(0.0)


def common_sum(ranges: Iterable[Range]) -> Range:
    """The sum of figures that are wrong together: their bounds add."""
    listed = list(ranges)
    return Range(
        math.fsum(r.value for r in listed),
        math.fsum(r.low for r in listed),
        math.fsum(r.high for r in listed),
    )


def independent_sum(ranges: Iterable[Range]) -> Range:
    """The sum of figures with errors of their own: what lies beyond the values adds in squares."""
    listed = list(ranges)
    value = math.fsum(r.value for r in listed)
    down = math.sqrt(math.fsum((r.value - r.low) ** 2 for r in listed))
    up = math.sqrt(math.fsum((r.high - r.value) ** 2 for r in listed))
    return Range(value, max(0.0, value - down), value + up)
