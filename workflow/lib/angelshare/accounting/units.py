"""Energies for people: one unit per axis or table, chosen from the largest value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

J_PER_KWH = 3.6e6


class Unit(NamedTuple):
    """A unit and how many joules (or tokens, grams) one of it is."""

    name: str
    factor: float


ENERGY = (Unit("kWh", J_PER_KWH), Unit("Wh", 3.6e3), Unit("kJ", 1e3), Unit("J", 1.0))
_ENERGY_FROM_J = (J_PER_KWH, 3.6e5, 1e4, 0.0)


def energy_unit(values_j: Iterable[float | None]) -> Unit:
    """The one unit in which these energies read best: J, kJ from 10 kJ, Wh from 100 Wh, kWh."""
    finite = [abs(v) for v in values_j if v is not None and math.isfinite(v)]
    largest = max(finite, default=0.0)
    for unit, threshold in zip(ENERGY, _ENERGY_FROM_J, strict=True):
        if largest >= threshold:
            return unit
    return ENERGY[-1]


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, with an exponent only where it is very long."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if decimals > 8 or abs(value) >= 1e9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{decimals}f}"


def energy(value_j: float | None, digits: int = 3) -> str:
    """An energy with its own unit: `energy(3.96e7) == '11.0 kWh'`."""
    if value_j is None:
        return "not known"
    unit = energy_unit([value_j])
    return f"{number(value_j / unit.factor, digits)} {unit.name}"
